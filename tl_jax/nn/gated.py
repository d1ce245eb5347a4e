# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the decoders after GPT-2 have in place of LayerNorm and of the plain MLP."""

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.nn.functions import activation, dropout
from tl_jax.nn.linear import Linear


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + epsilon), computed in float32, times a learned scale (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x):
        """float[..., width] -> the same shape and dtype."""
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return self.scale[...] * wide.astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020).

    Args:
      width, hidden: sizes of the input and of what lies between.
      act: the activation's published name.
      rate: dropout before the last layer.
    """

    def __init__(self, width: int, hidden: int, act: str, *, bias: bool, rate: float = 0.0, kernel_init, rngs):
        def linear(inputs, outputs):
            return Linear(inputs, outputs, use_bias=bias, kernel_init=kernel_init, rngs=rngs)

        self.gate, self.up, self.down = linear(width, hidden), linear(width, hidden), linear(hidden, width)
        self.act, self.rate = act, rate

    def __call__(self, x, key=None):
        """float[..., width] -> float[..., width]; `key` for dropout, or None."""
        return self.down(dropout(activation(self.act)(self.gate(x)) * self.up(x), self.rate, key))
