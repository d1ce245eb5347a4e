# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy over many words without the scores of all positions at once.

    losses_BT, best_BT = cross_entropy(Factors(hidden_BTD, kernel_DV), labels_BT)      # of hidden_BTD @ kernel_DV

The scores of a few columns of time exist together, and for no longer than their loss needs them. Where the kernel does
not train, gradients of the hidden states are made on the way forward, while the scores are there; where it does, scores
are computed once more on the way back, unless they are few enough to be kept. The idea is that of Cut Cross-Entropy
(Wijmans et al. 2024) and its relatives.
"""

# B batch, T time, D width, V words; t columns of time that are worked on together; G groups of rows, N places of one

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

# Bytes of scores that exist at one time for each group of rows; a single column of time may take more.
LIMIT = 64 * 2**20
# Where the kernel trains and all scores take at most so many times as much, they are kept: a product fewer.
_KEPT = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factors:
    """Scores that are not multiplied yet.

    Attributes:
      hidden: float[B, T, D].
      kernel: float[D, V], or [V, D] as a table of words lies.
      words: the kernel's axis of words.
      groups: B divides into so many, each on devices of its own; what sums over all rows is added up over the groups
        once, at the end, and not for every part.
    """

    hidden: Array
    kernel: Array
    words: int = dataclasses.field(default=1, metadata={"static": True})
    groups: int = dataclasses.field(default=1, metadata={"static": True})


def score(scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """What a loss needs of scores.

    Args:
      scores: float32[..., V].
      labels: int[...]; the loss means something where they are in [0, V).

    Returns:
      The cross-entropy float32[...], the word with the highest score int32[...], and the logarithm of the sum of
      exponentials float32[...].
    """
    log_sum = jax.nn.logsumexp(scores, axis=-1)
    # A comparison and no look-up, so that words may be shared out over devices.
    asked = jnp.sum(jnp.where(_is_label(scores, labels), scores, 0), axis=-1)
    return log_sum - asked, jnp.argmax(scores, axis=-1).astype(jnp.int32), log_sum


def cross_entropy(factors: Factors, labels_BT: Array, limit: int = LIMIT) -> tuple[Array, Array]:
    """Cross-entropy of every position, computed in float32, and the word with the highest score.

    Args:
      labels_BT: int; the loss means something where they are in [0, V).
      limit: bytes of scores that exist at one time, for each group of rows.

    Returns:
      float32[B, T] and int32[B, T].
    """
    return _cross_entropy(factors.hidden, factors.kernel, labels_BT, (factors.words, factors.groups, limit))


# The kernel keeps the form it has: within a loop, the other form of it would be a copy.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(hidden_BTD, kernel, labels_BT, form):
    def columns(carry, parts):
        hidden_BtD, labels_Bt = parts
        return carry, score(_product(hidden_BtD, kernel, form[0]), labels_Bt)[:2]

    return _by_columns(columns, (), (hidden_BTD, labels_BT), kernel, form)[1]


def _forward(hidden_BTD, kernel, labels_BT, form):
    trains, (words, groups, limit) = kernel.perturbed, form
    hidden_BTD, kernel, labels_BT = hidden_BTD.value, kernel.value, labels_BT.value
    keeps = trains and _parts(hidden_BTD, kernel, form) <= _KEPT
    form = (words, groups, _KEPT * limit) if keeps else form

    def columns(carry, parts):
        hidden_BtD, labels_Bt = parts
        scores_BtV = _product(hidden_BtD, kernel, words)
        losses_Bt, best_Bt, log_sum_Bt = score(scores_BtV, labels_Bt)
        if trains:
            return carry, (losses_Bt, best_Bt, (log_sum_Bt, scores_BtV if keeps else None))
        # Where a position's loss counts 1; what it does count will multiply its row.
        slope_BtV = _slope(scores_BtV, log_sum_Bt, labels_Bt)
        return carry, (losses_Bt, best_Bt, _product(slope_BtV, kernel, 1 - words).astype(hidden_BtD.dtype))

    _, (losses_BT, best_BT, last) = _by_columns(columns, (), (hidden_BTD, labels_BT), kernel, form)
    return (losses_BT, best_BT), (hidden_BTD, kernel, labels_BT, *last) if trains else (last,)


def _backward(form, kept, given):
    weight_BT, (words, groups, limit) = given[0], form
    if len(kept) == 1:
        (slope_BTD,) = kept
        return (weight_BT[..., None] * slope_BTD).astype(slope_BTD.dtype), None, None
    hidden_BTD, kernel, labels_BT, log_sum_BT, scores_BTV = kept
    form = form if scores_BTV is None else (words, groups, _KEPT * limit)
    product = ("gnv,gnd->gvd", "gnv,gnd->gdv")[words]

    # One axis to sum over: of two XLA copies the slopes into another order on CPUs first.
    def grouped(x):
        return x.reshape(groups, -1, x.shape[-1])

    def columns(total, parts):
        hidden_BtD, labels_Bt, log_sum_Bt, weight_Bt, scores_BtV = parts
        scores_BtV = _product(hidden_BtD, kernel, words) if scores_BtV is None else scores_BtV
        slope_BtV = _slope(scores_BtV, log_sum_Bt, labels_Bt) * weight_Bt[..., None]
        pair = grouped(slope_BtV), grouped(hidden_BtD)
        total += jnp.einsum(product, *pair, preferred_element_type=jnp.float32)
        return total, _product(slope_BtV, kernel, 1 - words).astype(hidden_BtD.dtype)

    arrays = hidden_BTD, labels_BT, log_sum_BT, weight_BT, scores_BTV
    nothing = jnp.zeros((groups, *kernel.shape), jnp.float32)
    change, change_BTD = _by_columns(columns, nothing, arrays, kernel, form)
    return change_BTD, change.sum(axis=0).astype(kernel.dtype), None


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)


def _by_columns(function, carry, arrays, kernel, form):
    """A scan of `function(carry, parts)` over columns of time of `arrays` [B, T, ...]: as many at once, and as equally
    many, as the limit allows. The last are filled up with zeros, whose results are cut off."""
    rows, time = arrays[0].shape[:2]
    length = math.ceil(time / min(_parts(arrays[0], kernel, form), time))
    count = math.ceil(time / length)

    # Cut along time, so that a device that holds some of the rows has its share of every part.
    def cut(x):
        filled = jnp.pad(x, [(0, 0), (0, count * length - time), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(filled.reshape(rows, count, length, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(rows, count * length, *x.shape[3:])[:, :time]

    carry, found = jax.lax.scan(function, carry, jax.tree.map(cut, arrays))
    return carry, jax.tree.map(join, found)


def _parts(hidden_BTD, kernel, form) -> int:
    """How many times the limit the scores of all positions take."""
    (rows, time), (words, groups, limit) = hidden_BTD.shape[:2], form
    return math.ceil(rows // groups * time * kernel.shape[words] * 4 / limit)


def _product(x, kernel, axis: int):
    """float[B, t, n] times the kernel, so that its `axis` is the last of the float32 result."""
    form = ("btn,on->bto", "btn,no->bto")[axis]
    return jnp.einsum(form, x, kernel, preferred_element_type=jnp.float32)


def _slope(scores_BtV, log_sum_Bt, labels_Bt):
    """Of the cross-entropy in the scores."""
    chances_BtV = jnp.exp(scores_BtV - log_sum_Bt[..., None])
    return jnp.where(_is_label(scores_BtV, labels_Bt), chances_BtV - 1, chances_BtV)


def _is_label(scores, labels):
    return labels[..., None] == jnp.arange(scores.shape[-1])
