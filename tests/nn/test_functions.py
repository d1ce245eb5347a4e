# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Dropout draws what it promises: the rate, independently of place and key, whatever the sharding. GELU is exact."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.nn.functions import activation, dropout


def kept(key, shape=(64, 40, 96), rate=0.1):
    """Where ones survive, as a NumPy array of booleans."""
    return np.asarray(dropout(jnp.ones(shape), rate, key)) != 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_dropout_zeroes_this_share_and_keeps_the_mean(rate):
    """Within five standard deviations of a binomial; what survives is scaled by 1 / (1 - rate)."""
    x = dropout(jnp.ones((64, 40, 96)), rate, jax.random.key(0))
    spread = 5 * (rate * (1 - rate) / x.size) ** 0.5
    assert abs(float((x == 0).mean()) - rate) < spread
    np.testing.assert_allclose(x[x != 0], 1 / (1 - rate), rtol=1e-6)


def test_dropout_decides_independently():
    """Correlations of the mask with itself, moved by one along every axis, by powers of two in memory, and with the
    masks of other keys, are those of chance."""
    one = kept(jax.random.key(0)).astype(float).ravel() - 0.9
    limit = 5 * 0.09 / len(one) ** 0.5
    for shift in (1, 2, 64, 96, 256, 4096, 40 * 96):
        assert abs(np.mean(one * np.roll(one, shift))) < limit, shift
    keys = [*jax.random.split(jax.random.key(0), 6), *(jax.random.fold_in(jax.random.key(0), n) for n in range(6))]
    for key in keys:
        assert abs(np.mean(one * (kept(key).ravel() - 0.9))) < limit


def test_every_row_and_column_loses_its_share():
    """Chi-square over rows and over columns: no stripes. The statistic of n cells is n ± sqrt(2 n)."""
    mask = kept(jax.random.key(1), (512, 512), 0.5)
    for axis in (0, 1):
        counts = mask.sum(axis=axis)
        statistic = np.sum((counts - 256) ** 2 / 128)
        assert abs(statistic - 512) < 5 * (2 * 512) ** 0.5


def test_dropout_is_the_same_on_every_sharding():
    """Bit for bit on eight devices, by rows or by columns."""
    mesh = jax.make_mesh((8,), ("data",))
    key, x = jax.random.key(0), jnp.ones((16, 24))
    expected = dropout(x, 0.3, key)
    for spec in (jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec(None, "data")):
        placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        np.testing.assert_array_equal(jax.jit(lambda x: dropout(x, 0.3, key))(placed), expected)


def test_dropout_without_key_or_rate_is_the_identity():
    """The very array."""
    x = jnp.ones(3)
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_gelu_is_the_exact_form_and_has_its_slope():
    """It is x Φ(x), its slope Φ(x) + x φ(x), in float64; the tanh form is up to 4.7e-4 away, XLA's `erf` 5e-7."""
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    below = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.astype(float)])
    density = np.exp(-0.5 * x.astype(float) ** 2) / math.sqrt(2 * math.pi)
    y, back = jax.vjp(activation("gelu"), jnp.asarray(x))
    np.testing.assert_allclose(y, x * below, atol=2e-6)
    np.testing.assert_allclose(back(jnp.ones_like(x))[0], below + x * density, atol=2e-6)
