# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of one choice among K outcomes, and what they are told of outcomes that are rare.

    log_p_BK = jax.nn.log_softmax(logits_BK)
    losses_B = expected(focal(log_p_BK, gamma=2.0), smoothed(targets_BK, 0.1), outcome_weights(counts_K))

A loss is a function of the log-probability of every outcome; the target says how much each of them counts, so hard,
smoothed and mixed labels are one thing. All along the last axis: K classes, or the two answers of a yes-or-no question.
"""

# B batch, K outcomes

import jax.numpy as jnp
import numpy as np
from jax import Array


def cross_entropy(log_p: Array) -> Array:
    """-log p, for log-probabilities float32[..., K]; shape as given."""
    return -log_p


def focal(log_p: Array, gamma: float) -> Array:
    """-(1 - p)^gamma log p (Lin et al. 2017); cross-entropy for gamma = 0. Shape as given."""
    # A power below 1 has an infinite slope at 0, which a certain outcome reaches in float32.
    rest = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
    return -(rest**gamma) * log_p


def generalized(log_p: Array, q: float) -> Array:
    """(1 - p^q) / q (Zhang and Sabuncu 2018), for q in (0, 1]: bounded by 1 / q, so a wrong label cannot pull without
    end. Towards 0 it is cross-entropy, at 1 it is 1 - p. Shape as given."""
    return -jnp.expm1(q * log_p) / q


def smoothed(targets: Array, epsilon: float) -> Array:
    """(1 - epsilon) targets + epsilon / K (Szegedy et al. 2016). Shape as given."""
    return (1 - epsilon) * targets + epsilon / targets.shape[-1]


def expected(losses: Array, targets: Array, weights: Array | None = None) -> Array:
    """The sum over outcomes of target times loss, float32[...].

    Args:
      losses, targets: float32[..., K].
      weights: float32[K] or [..., K], how much each outcome counts; all alike where None.
    """
    return jnp.sum(targets * losses if weights is None else weights * targets * losses, axis=-1)


def outcome_weights(counts: np.ndarray, beta: float | None = None) -> np.ndarray:
    """How much each outcome counts in a loss: more the rarer it is.

    In proportion to 1 / n, or with `beta` to 1 / (1 - beta^n), one over the effective number of examples (Cui et al.
    2019), which goes from no difference (beta towards 0) to 1 / n (beta towards 1). Scaled so that the mean over the
    counted examples is 1 and the loss keeps its size; the paper scales to a sum of K.

    Args:
      counts: int[..., K], how often each outcome occurs, at least once.
      beta: in (0, 1); None for 1 / n.

    Returns:
      float32[..., K].
    """
    counts = counts.astype(np.float64)
    number = counts if beta is None else 1 - beta**counts
    scale = counts.sum(axis=-1, keepdims=True) / (counts / number).sum(axis=-1, keepdims=True)
    return (scale / number).astype(np.float32)


def log_priors(counts: np.ndarray) -> np.ndarray:
    """The logarithm of each outcome's share, float32[..., K], of counts int[..., K] that are at least 1."""
    counts = counts.astype(np.float64)
    return np.log(counts / counts.sum(axis=-1, keepdims=True)).astype(np.float32)
