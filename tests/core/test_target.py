# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What suits one platform alone is traced for that platform, whatever this process has."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tl_jax.core import barriers, target
from tl_jax.nn.attention import attend
from tl_jax.nn.norm import LayerNorm


def traced(function, *arrays) -> str:
    # A new function each time, as JAX keeps what it has traced.
    return str(jax.make_jaxpr(lambda *given: function(*given))(*arrays))


@pytest.mark.parametrize(
    ("function", "mark"),
    [
        (lambda x: attend(x, x, x), "custom_vjp"),
        (lambda x: LayerNorm(8, epsilon=1e-6, rngs=nnx.Rngs(0))(x), "custom_vjp"),
        (barriers.held, "optimization_barrier"),
    ],
    ids=["attention", "norm", "barrier"],
)
def test_what_cpus_have_is_traced_for_cpus_alone(function, mark):
    """Attention and norm by hand and barriers, in a process whose devices are CPUs."""
    x = jnp.ones((1, 4, 2, 8))
    assert mark in traced(function, x) and barriers.compiler_options()
    with target.traced_for("tpu"):
        assert mark not in traced(function, x) and not barriers.compiler_options()
    assert target.platform() == "cpu"
