# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The maximum over windows is PyTorch's, and so is the place that its gradient goes to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tl_jax.nn.max_pool import max_pool


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (3, 4)])
@pytest.mark.parametrize("pads", [((1, 1), (1, 1)), ((0, 1), (0, 0)), ((0, 0), (0, 0))])
def test_values_and_gradients_are_those_of_pytorch(size, pads):
    """Bit for bit, of whole numbers below 4, so that most windows have their maximum more than once."""
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, *size, 5)).astype(np.float32)
    y, back = jax.vjp(lambda x: max_pool(x, pads), jnp.asarray(x))
    given = rng.integers(1, 9, y.shape).astype(np.float32)
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    (top, bottom), (left, right) = pads
    around = torch.nn.functional.pad(theirs, (left, right, top, bottom), value=-torch.inf)
    expected = torch.nn.functional.max_pool2d(around, 3, 2)
    expected.backward(torch.tensor(given.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(y, expected.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(back(jnp.asarray(given))[0], theirs.grad.numpy().transpose(0, 2, 3, 1))


def test_a_gradient_is_sums_and_no_scatter():
    """In the program for a CPU, where a scatter takes twelve times as long."""
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    program = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, ((1, 1), (1, 1))) ** 2))).lower(x).as_text()
    assert "reduce_window" in program and "select_and_scatter" not in program
