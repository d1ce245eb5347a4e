# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""LayerNorm by hand, as CPUs have it, is the formula and has its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tl_jax.nn.norm import LayerNorm

WIDTH = 48


def formula(x, scale, bias, epsilon=1e-6):
    below = x - x.mean(-1, keepdims=True)
    return below / np.sqrt((below**2).mean(-1, keepdims=True) + epsilon) * scale + bias


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_outputs_and_gradients_are_those_in_float64(mean):
    """Of the input, the scale and the bias, also where the mean is large against the deviation; gradients by central
    differences. Numbers of order 1 are held to a few 1e-7. A mean near 100 is held to its last place, 8e-6, whatever it
    is computed by; in the gradient of the scale six rows add that up, times what comes back to them."""
    rng = np.random.default_rng(0)
    x, given = mean + rng.normal(size=(2, 3, WIDTH)), rng.normal(size=(2, 3, WIDTH))
    x = np.float64(np.float32(x))
    scale, bias = 1 + 0.3 * rng.normal(size=WIDTH), rng.normal(size=WIDTH)
    graphdef, _ = nnx.split(LayerNorm(WIDTH, epsilon=1e-6, rngs=nnx.Rngs(0)))

    def layer(x, scale, bias):
        return nnx.merge(graphdef, nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)}))(x)

    arrays = x, scale, bias
    y, back = jax.vjp(layer, *(jnp.asarray(array, jnp.float32) for array in arrays))
    tolerance = 2e-6 + 8e-7 * mean
    np.testing.assert_allclose(y, formula(*arrays), atol=tolerance)
    for place, found in enumerate(back(jnp.asarray(given, jnp.float32))):
        slope, step = np.zeros_like(arrays[place]), 1e-5
        for index in np.ndindex(slope.shape):
            moved = [array.copy() for array in arrays], [array.copy() for array in arrays]
            moved[0][place][index] += step
            moved[1][place][index] -= step
            slope[index] = np.sum((formula(*moved[0]) - formula(*moved[1])) * given) / (2 * step)
        np.testing.assert_allclose(found, slope, atol=tolerance)


@pytest.mark.parametrize("dtypes", [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)])
def test_other_types_are_the_librarys(dtypes):
    """An input or leaves in bfloat16: the statistics are float32 and the result is rounded once, as Flax has it."""
    layer = LayerNorm(WIDTH, epsilon=1e-6, rngs=nnx.Rngs(0))
    for leaf in (layer.scale, layer.bias):
        leaf.set_value(leaf[...].astype(dtypes[1]))
    x = jax.random.normal(jax.random.key(0), (4, WIDTH), dtypes[0])
    np.testing.assert_array_equal(layer(x), nnx.LayerNorm.__call__(layer, x))
