# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Averages of networks against NumPy in float64, and bit by bit where they must not change anything."""

import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.core import averaging
from tl_jax.core.errors import UserError


def network(seed, **more):
    """Two leaves of float32, one of bfloat16, a negative zero and an integer."""
    rng = np.random.default_rng(seed)
    leaves = {"stem/kernel": rng.normal(size=(4, 3)), "head/bias": rng.normal(size=3)}
    leaves = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in leaves.items()}
    leaves["stem/scale"] = jnp.asarray(rng.normal(size=50), jnp.bfloat16)
    return leaves | {"stem/zero": jnp.array([-0.0]), "stem/count": jnp.array([2**24 + 1]), **more}


def bits(leaves):
    """Each leaf's bytes, dtype and shape."""
    return {path: (np.asarray(leaf).tobytes(), leaf.dtype, leaf.shape) for path, leaf in leaves.items()}


def test_the_ends_of_the_way_are_bit_equal():
    """Alpha 0 is the pretrained network and alpha 1 the tuned one, to the sign of a zero."""
    first, last = network(0), network(1, **{"stem/zero": jnp.array([0.0])})
    assert bits(averaging.between(first, last, 0)) == bits(first)
    assert bits(averaging.between(first, last, 1.0)) == bits(last)


def test_the_way_is_straight():
    """(1 - alpha) a + alpha b, and a network that did not move stays where it is at every alpha, bit by bit."""
    first, last = network(0), network(1)
    for alpha in (0.1, 0.5, 0.9):
        found = averaging.between(first, last, alpha)
        for path in ("stem/kernel", "head/bias", "stem/scale"):
            a, b = (np.asarray(tree[path], np.float64) for tree in (first, last))
            # Three roundings of float32 to values of up to 4; then one to bfloat16 where that is the leaf's dtype.
            close = {"rtol": 2**-8, "atol": 2**-12} if path == "stem/scale" else {"rtol": 0, "atol": 1e-6}
            np.testing.assert_allclose(np.asarray(found[path], np.float64), (1 - alpha) * a + alpha * b, **close)
            assert found[path].dtype == first[path].dtype
        assert bits(averaging.between(first, network(0), alpha)) == bits(first)


def test_what_the_pretrained_network_lacks_stays_tuned():
    """A new head is the tuned one at every alpha."""
    first, last = network(0), network(1)
    del first["head/bias"]
    for alpha in (0, 0.3, 1):
        found = averaging.between(first, last, alpha)
        assert list(found) == list(last) and found["head/bias"] is last["head/bias"]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_a_soup_of_equals_is_each_of_them(count):
    """Bit by bit, for numbers of which a float32 has no inverse too."""
    assert bits(averaging.mean([network(0) for _ in range(count)])) == bits(network(0))


def test_a_soup_is_the_mean():
    """Of five networks, in float64; a leaf in bfloat16 is rounded once, at the end."""
    trees = [network(seed) for seed in range(5)]
    found = averaging.mean(trees)
    for path in ("stem/kernel", "head/bias", "stem/scale"):
        expected = np.mean([np.asarray(tree[path], np.float64) for tree in trees], axis=0)
        if path == "stem/scale":
            # The float32 before rounding is right to 1e-6, so no element may be a whole step of bfloat16 (2^-8) off.
            np.testing.assert_allclose(np.asarray(found[path], np.float64), expected, rtol=2**-8, atol=2e-6)
            assert (found[path] == expected.astype(found[path].dtype)).mean() > 0.9
        else:
            # A dozen roundings of float32 to values of up to 4.
            np.testing.assert_allclose(found[path], expected, rtol=0, atol=2e-6)
        assert found[path].dtype == trees[0][path].dtype


def test_a_greedy_soup_takes_what_does_not_hurt():
    """Scores are distances to 0: of 3, -4, 6 the best alone is 3; with -4 it is better, with 6 worse."""
    trees = [{"x": jnp.array([value])} for value in (3.0, -4.0, 6.0, -0.5)]
    seen = []

    def evaluate(tree):
        seen.append(float(tree["x"][0]))
        return -abs(seen[-1])

    soup, chosen = averaging.greedy_soup(trees, evaluate)
    assert chosen == [0, 1, 3] and float(soup["x"][0]) == -0.5 and evaluate(soup) >= evaluate(trees[0])
    # The last one makes it exactly as good as it was, and is taken: no worse is good enough.
    np.testing.assert_allclose(seen[:4], [3.0, -0.5, 5 / 3, -0.5], rtol=1e-6)


def test_a_greedy_soup_is_never_worse_than_the_best():
    """Whatever the scores are."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        target = rng.normal(size=3)
        trees = [{"x": jnp.asarray(rng.normal(size=3), jnp.float32)} for _ in range(4)]

        def evaluate(tree, target=target):
            return -float(np.abs(np.sin(3 * (np.asarray(tree["x"]) - target))).sum())

        trees.sort(key=evaluate, reverse=True)
        soup, chosen = averaging.greedy_soup(trees, evaluate)
        assert evaluate(soup) >= evaluate(trees[0]) and chosen[0] == 0


@pytest.mark.parametrize(
    "change, told",
    [
        ({"head/bias": jnp.zeros(4)}, r"head/bias is float32\[3\] in tree 0, float32\[4\] in tree 1"),
        ({"stem/scale": jnp.zeros(50)}, r"stem/scale is bfloat16\[50\] in tree 0, float32\[50\] in tree 1"),
        ({"neck/bias": jnp.zeros(3)}, "neck/bias is missing in tree 0"),
        ({"stem/count": jnp.array([5])}, "stem/count int32 differs in tree 1 and has no mean"),
    ],
)
def test_networks_of_another_form_are_refused(change, told):
    """Another shape, dtype or path, and integers, which have no mean."""
    with pytest.raises(UserError, match=told):
        averaging.mean([network(0), network(1, **change)])


def test_all_that_does_not_fit_is_told_at_once():
    """Two leaves, one error; and what is no way at all."""
    with pytest.raises(UserError, match="stem/scale.*head/bias|head/bias.*stem/scale"):
        averaging.mean([network(0), network(1, **{"head/bias": jnp.zeros(4), "stem/scale": jnp.zeros(2)})])
    lacking = network(1)
    del lacking["stem/kernel"]
    with pytest.raises(UserError, match="stem/kernel is missing in the tuned network"):
        averaging.between(network(0), lacking, 0.5)
    with pytest.raises(UserError, match=r"alpha: is 1.5, must be in \[0, 1\]"):
        averaging.between(network(0), network(1), 1.5)
    with pytest.raises(UserError, match="x is float64, float32 cannot average it"):
        averaging.mean([{"x": np.zeros(2)}])
    with pytest.raises(UserError, match="nothing to average"):
        averaging.mean([])
