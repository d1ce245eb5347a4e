# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiler may not compute anew."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.barriers import compiler_options, inlined
from tl_jax.core.chain import EVAL
from tl_jax.models import vit


def cost(layers: int, what: str) -> float:
    """Of forward and backward pass of a pre-norm transformer with so many blocks, as compiled."""
    config = vit.Config(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    model = nnx.eval_shape(lambda: vit.Backbone(config, rngs=nnx.Rngs(0)))
    chains, params = chain.split(model)

    def loss(params, batch):
        outputs, _ = chain.run_chains(model, chains, params, batch, lambda _: EVAL)
        return jnp.square(outputs["last_hidden_state"]).sum()

    batch = {"pixel_values": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)}
    compiled = jax.jit(jax.grad(loss), compiler_options=compiler_options()).lower(params, batch).compile()
    return compiled.cost_analysis()[what]


@pytest.mark.parametrize("what", ["flops", "bytes accessed"])
def test_costs_grow_with_the_depth_not_with_its_square(what):
    """Twice as many more blocks cost twice as much more, to a hundredth."""
    four, eight, sixteen = (cost(layers, what) for layers in (4, 8, 16))
    assert (sixteen - eight) / (eight - four) == pytest.approx(2, rel=0.01)


def test_a_compiled_function_may_stand_within_another():
    """`jax.jit` refuses a compiler's options there; without a trace around it, it is compiled."""
    once = []

    def double(x):
        once.append(isinstance(x, jax.core.Tracer))
        return x * 2

    found = inlined(jax.jit(double, compiler_options=compiler_options()))
    assert jax.vmap(lambda x: found(x) + 1)(jnp.arange(3.0)).tolist() == [1.0, 3.0, 5.0]
    assert jax.jit(found)(2.0) == found(2.0) == 4.0 and found(3.0) == 6.0
    assert once == [True] * 3
