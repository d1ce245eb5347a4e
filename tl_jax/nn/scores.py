# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention that holds its scores: dropout of its weights, and a gradient in as few passes over them as there can be.

    y_BTNH = attend(q_BTNH, k_BSNH, v_BSNH, bias=None, mask=mask_B11S, scale=0.125, rate=0.1, key=key)

Derived by itself, the gradient of a softmax takes passes of its own for the mask, the scale, the division and the sum,
and XLA multiplies batches of matrices on a CPU at half the speed where their two first dimensions are not the batch's:
with both mended here, forward and backward take 0.6 of the time for 128 tokens and 12 heads (BUILD_NOTES). Nor does it
spread such a product well over cores, which each take one of several: a large batch is cut into portions.
"""

# B batch, T queries, S keys, N heads, H width of a head

import functools

import jax
import jax.numpy as jnp

from tl_jax.core import target
from tl_jax.nn.functions import dropout


def attend(q_BTNH, k_BSNH, v_BSNH, *, bias, mask, scale: float, rate: float, key):
    """dropout(softmax(scale q k' + bias)) v, the softmax in float32.

    Args:
      q_BTNH, k_BSNH, v_BSNH: float of one dtype.
      bias: float32, or None; mask: bool, or None; of shapes that broadcast to [B, N, T, S]. False keys are not attended
        to, and a query without any True weighs all keys alike.
      rate, key: as `functions.dropout` takes them.

    Returns:
      float[B, T, N, H].
    """
    count = _portions(q_BTNH, k_BSNH)
    portions = []
    for number in range(count):
        parts = (_portion(x, number, count) for x in (q_BTNH, k_BSNH, v_BSNH, bias, mask))
        portions.append(_attend((scale, rate, (number, count)), *parts, key))
    return jnp.stack(portions, 1).reshape(q_BTNH.shape)


# Of a batch whose scores take so many bytes; 2 and 8 portions are slower on two cores, and fewer scores gain nothing.
_PORTIONS, _LARGE = 4, 2**21


def _portions(q_BTNH, k_BSNH) -> int:
    batch, queries, heads, _ = q_BTNH.shape
    if not isinstance(batch, int):
        # That of an exported program is open.
        return 1
    large = 4 * batch * heads * queries * k_BSNH.shape[1] >= _LARGE
    # However many devices share the batch, each then holds its part of every portion.
    even = batch % (_PORTIONS * jax.device_count()) == 0
    return _PORTIONS if large and even and target.platform() == "cpu" else 1


def _portion(x, number: int, count: int):
    """Rows number, number + count, …; what is one for all examples stays so."""
    if count == 1 or x is None or x.ndim < 4 or len(x) == 1:
        return x
    return x.reshape(len(x) // count, count, *x.shape[1:])[:, number]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(numbers, q_BTNH, k_BSNH, v_BSNH, bias, mask, key):
    return _forward(numbers, q_BTNH, k_BSNH, v_BSNH, bias, mask, key)[0]


def _forward(numbers, q_BTNH, k_BSNH, v_BSNH, bias, mask, key):
    scale, rate, portion = numbers
    q_BNTH, k_BNSH, v_BNSH = map(_swapped, (q_BTNH * scale, k_BSNH, v_BSNH))
    scores_BNTS = _product("bnth,bnsh->bnts", q_BNTH, k_BNSH)
    if bias is not None:
        scores_BNTS += bias
    if mask is not None:
        # A sum fuses into the softmax where a choice takes a pass of its own. So far down every score is the same.
        scores_BNTS += jnp.where(mask, 0.0, 0.5 * jnp.finfo(jnp.float32).min)
    weights_BNTS = jax.nn.softmax(scores_BNTS)
    dropped_BNTS = dropout(weights_BNTS, rate, key, portion).astype(v_BNSH.dtype)
    y_BNTH = jnp.einsum("bnts,bnsh->bnth", dropped_BNTS, v_BNSH)
    return _swapped(y_BNTH), (q_BNTH, k_BNSH, v_BNSH, bias, mask, key, weights_BNTS, y_BNTH)


def _backward(numbers, kept, dy_BTNH):
    q_BNTH, k_BNSH, v_BNSH, bias, mask, key, weights_BNTS, y_BNTH = kept
    dy_BNTH, dtype = _swapped(dy_BTNH), v_BNSH.dtype
    scale, rate, portion = numbers
    # What is dropped is drawn again, as cheap as to read it.
    dropped_BNTS = dropout(weights_BNTS, rate, key, portion).astype(dtype)
    dv_BNHS = jnp.einsum("bnth,bnts->bnhs", dy_BNTH, dropped_BNTS)
    dweights_BNTS = dropout(_product("bnth,bnsh->bnts", dy_BNTH, v_BNSH), rate, key, portion)
    # The sum of weights times their gradients over the keys: as y is the weighted sum of v, one over H says the same.
    mean_BNT1 = jnp.sum(dy_BNTH * y_BNTH, axis=-1, keepdims=True, dtype=jnp.float32)
    dscores_BNTS = weights_BNTS * (dweights_BNTS - mean_BNT1)
    if mask is not None:
        dscores_BNTS = jnp.where(mask, dscores_BNTS, 0)
    dbias = None if bias is None else _summed(dscores_BNTS, bias)
    dscores_BNTS = dscores_BNTS.astype(dtype)
    dq_BNTH = jnp.einsum("bnts,bnsh->bnth", dscores_BNTS, k_BNSH) * scale
    # These queries hold the scale.
    dk_BNHS = jnp.einsum("bnth,bnts->bnhs", q_BNTH, dscores_BNTS)
    last = (0, 3, 1, 2)
    return _swapped(dq_BNTH), dk_BNHS.transpose(last), dv_BNHS.transpose(last), dbias, None, None


_attend.defvjp(_forward, _backward)


def _product(axes: str, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _swapped(x):
    """[B, T, N, H] -> [B, N, T, H], or back."""
    return x.transpose(0, 2, 1, 3)


def _summed(x, like):
    """The sum over the axes along which `like` was broadcast, in its shape and dtype."""
    full = (1,) * (x.ndim - like.ndim) + like.shape
    axes = tuple(axis for axis, size in enumerate(full) if size == 1)
    return jnp.sum(x, axis=axes, keepdims=True).reshape(like.shape).astype(like.dtype)
