# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of a product that is never whole, against the plain formula and NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl_jax.core import projected
from tl_jax.core.projected import Factors

_ROWS, _TIME, _WIDTH, _WORDS = 3, 7, 8, 50
# Scores of one column of time: seven parts; somewhat more: four, the last filled up; of two: few enough to be kept.
_ONE, _MORE, _TWO = (columns * _ROWS * _WORDS * 2 for columns in (2, 3, 4))
_LIMITS = [_ONE, _MORE, _TWO, projected.LIMIT]


def numbers(dtype=jnp.float32):
    """Hidden states, a kernel [D, V], labels and what each position counts, one of them nothing."""
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(_ROWS, _TIME, _WIDTH)), rng.normal(size=(_WIDTH, _WORDS))
    weights = rng.uniform(0.5, 1.5, (_ROWS, _TIME)).astype(np.float32)
    weights[1, 2] = 0
    labels = rng.integers(0, _WORDS, (_ROWS, _TIME))
    return jnp.asarray(hidden, dtype), jnp.asarray(kernel, dtype), jnp.asarray(labels), weights


def plain(hidden, kernel, labels):
    """The same with all scores."""
    scores = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels), scores.argmax(axis=-1)


def cut(limit: int, words: int = 1):
    """The function under test, in the form of `plain`."""

    def function(hidden, kernel, labels):
        factors = Factors(hidden, kernel if words == 1 else kernel.T, words)
        return projected.cross_entropy(factors, labels, limit)

    return function


def with_slopes(function, arguments, wanted=(0, 1)):
    """((losses, best), gradients of their weighted sum in `wanted`), jitted."""
    *arrays, labels, weights = arguments

    def total(*arrays):
        losses, best = function(*arrays, labels)
        return jnp.sum(losses * weights), (losses, best)

    (_, found), gradients = jax.jit(jax.value_and_grad(total, wanted, has_aux=True))(*arrays)
    return found, gradients


@pytest.mark.parametrize("limit", _LIMITS)
def test_losses_are_those_of_numpy(limit):
    """Losses and best words in float64, however the positions are cut."""
    hidden, kernel, labels, _ = numbers()
    scores = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    chosen = np.take_along_axis(scores, np.asarray(labels)[..., None], axis=2)[..., 0]
    losses, best = jax.jit(cut(limit))(hidden, kernel, labels)
    # Float32 sums of 8 and 50 terms.
    np.testing.assert_allclose(losses, np.logaddexp.reduce(scores, axis=2) - chosen, rtol=1e-5)
    np.testing.assert_array_equal(best, scores.argmax(axis=2))


@pytest.mark.parametrize("limit", [_MORE, _TWO])
@pytest.mark.parametrize("words", [0, 1])
@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_gradients_are_those_of_all_scores(dtype, tolerance, words, limit):
    """Of both factors, and of the hidden states alone, where the kernel does not train; in either form of the kernel.
    float32: sums in another order; bfloat16: two roundings to 8 bits. Against the largest of each."""
    arguments = numbers(dtype)
    (losses, best), expected = with_slopes(plain, arguments)
    for wanted in ((0, 1), (0,)):
        found, gradients = with_slopes(cut(limit, words), arguments, wanted)
        np.testing.assert_allclose(found[0], losses, rtol=1e-6)
        np.testing.assert_array_equal(found[1], best)
        for ours, theirs in zip(gradients, expected):
            assert ours.dtype == dtype
            ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_a_sum_over_parts_is_not_rounded_in_between():
    """The kernel's gradient in bfloat16 is as near to that in float32 in seven parts as in one."""
    hidden, kernel, *rest = numbers(jnp.bfloat16)
    exact = with_slopes(plain, (hidden.astype(jnp.float32), kernel.astype(jnp.float32), *rest))[1][1]
    errors = []
    for limit in (_ONE, projected.LIMIT):
        found = with_slopes(cut(limit), (hidden, kernel, *rest), (1,))[1][0]
        errors.append(np.abs(np.asarray(found, np.float32) - exact).mean())
    assert errors[0] <= 1.05 * errors[1]


@pytest.mark.parametrize("wanted,limit,expected", [((0,), _MORE, 2), ((0, 1), _MORE, 4), ((0, 1), _TWO, 3)])
def test_scores_are_computed_twice_only_where_they_must(wanted, limit, expected):
    """Scores and their way back to the hidden states; scores once more only for a kernel that trains, and only where
    they are too many to be kept. Counted in the program, in which the body of a loop is written once."""
    *arrays, labels, weights = numbers()
    gradient = jax.grad(lambda *arrays: jnp.sum(cut(limit)(*arrays, labels)[0] * weights), wanted)
    assert jax.jit(gradient).lower(*arrays).compile().as_text().count(" dot(") == expected


def test_rows_on_several_devices_are_added_up_once():
    """The kernel's gradient, at the end and not for every part: of all communication, none is in a loop."""
    mesh = jax.make_mesh((3,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:3])
    hidden, kernel, labels, weights = numbers()

    def total(hidden, kernel, labels, groups):
        losses, _ = projected.cross_entropy(Factors(hidden, kernel, groups=groups), labels, _MORE // _ROWS)
        return jnp.sum(losses * weights)

    gradient = jax.jit(jax.grad(total, 1), static_argnums=3)
    places = [jax.NamedSharding(mesh, spec) for spec in (jax.P("data"), jax.P(), jax.P("data"))]
    arrays = [jax.device_put(x, place) for x, place in zip((hidden, kernel, labels), places)]
    compiled = gradient.lower(*arrays, _ROWS).compile()
    loops, entry = compiled.as_text().split("ENTRY")
    assert " all-reduce(" in entry and " all-reduce(" not in loops and " while(" in entry
    expected = jax.grad(total, 1)(hidden, kernel, labels, 1)
    # Sums in another order.
    np.testing.assert_allclose(compiled(*arrays), expected, rtol=1e-5, atol=1e-5)
