# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers are the library's, by products of two dimensions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tl_jax.nn.linear import Linear


def both(shape):
    """Ours and the library's, of the same numbers, as (function of its parameters and an input, parameters), and x."""
    made = [nnx.split(kind(shape[-1], 5, rngs=nnx.Rngs(0))) for kind in (Linear, nnx.Linear)]
    found = [(lambda params, x, form=form: nnx.merge(form, params)(x), params) for form, params in made]
    return *found, jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 3, 2, 4)])
def test_outputs_and_gradients_are_those_of_the_library(shape):
    """Of the input, the kernel and the bias; sums of up to 12 products in another order."""
    ours, theirs, x = both(shape)

    def found(function, params):
        return function(params, x), jax.grad(lambda params, x: jnp.sin(function(params, x)).sum(), (0, 1))(params, x)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found(*ours), found(*theirs))


def test_a_gradient_sums_over_one_axis():
    """All three products of two dimensions, where the library sums the kernel's over two axes of three."""
    ours, theirs, x = both((2, 3, 4))

    def summed(function, params):
        gradient = jax.jit(jax.grad(lambda params, x: jnp.sin(function(params, x)).sum(), (0, 1)))
        return re.findall(r"contracting_dims = \[([\d, ]*)\] x", gradient.lower(params, x).as_text())

    assert len(summed(*ours)) == 3 and all(len(axes) == 1 for axes in summed(*ours))
    assert "0, 1" in summed(*theirs)
