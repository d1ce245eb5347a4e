# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Losses at the edges of their formulas; the formulas themselves are tested with the task that offers them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.core import losses

_LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def _each(loss, *args):
    return loss(jax.nn.log_softmax(jnp.asarray(_LOGITS)), *args)


def test_limits_are_the_losses_that_the_papers_name():
    """Focal at 0 is cross-entropy; the generalized one goes to it with q, and is 1 - p at 1."""
    plain = _each(losses.cross_entropy)
    np.testing.assert_array_equal(_each(losses.focal, 0.0), plain)
    # A term q (log p)^2 / 2 is left.
    np.testing.assert_allclose(_each(losses.generalized, 1e-4), plain, rtol=5e-4)
    np.testing.assert_allclose(_each(losses.generalized, 1.0), 1 - jax.nn.softmax(_LOGITS), atol=1e-6)


@pytest.mark.parametrize("loss,number", [("focal", 0.0), ("focal", 0.5), ("focal", 2.0), ("generalized", 0.7)])
@pytest.mark.parametrize("far", [20.0, 1e4])
def test_certain_outcomes_have_finite_gradients(loss, number, far):
    """A probability of exactly 1 or 0 in float32, right or wrong."""

    def total(logits, wrong):
        found = getattr(losses, loss)(jax.nn.log_softmax(logits), number)
        return losses.expected(found, jax.nn.one_hot(wrong, 2))

    for wrong in (0, 1):
        value, gradient = jax.value_and_grad(total)(jnp.array([far, -far]), wrong)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "loss,number,formula",
    [
        ("focal", 1.5, lambda p: -((1 - p) ** 1.5) * np.log(p)),
        ("generalized", 0.7, lambda p: (1 - p**0.7) / 0.7),
    ],
)
def test_gradients_are_those_of_float64(loss, number, formula):
    """By central differences of the papers' formulas."""

    def by_hand(logits):
        return formula(np.exp(logits) / np.exp(logits).sum())[1]

    logits = _LOGITS[0].astype(np.float64)
    found = jax.grad(lambda x: getattr(losses, loss)(jax.nn.log_softmax(x), number)[1])(jnp.asarray(_LOGITS[0]))
    expected = [(by_hand(logits + step) - by_hand(logits - step)) / 2e-6 for step in 1e-6 * np.eye(4)]
    # Float32 against float64.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_weights_run_from_none_to_inverse():
    """With beta; those of inverse numbers are scikit-learn's `balanced`, and each set has mean 1 over the examples."""
    from sklearn.utils.class_weight import compute_class_weight

    counts = np.array([5, 1, 14])
    inverse = losses.outcome_weights(counts)
    labels = np.repeat(np.arange(3), counts)
    np.testing.assert_allclose(inverse, compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-6)
    np.testing.assert_allclose(losses.outcome_weights(counts, 1e-9), np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(losses.outcome_weights(counts, 1 - 1e-14), inverse, rtol=1e-6)
    for beta in (None, 0.9, 0.9999):
        np.testing.assert_allclose((losses.outcome_weights(counts, beta) * counts).sum(), 20, rtol=1e-6)
