# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The feed-forward half of a transformer block."""

from flax import nnx

from tl_jax.nn.functions import activation
from tl_jax.nn.linear import Linear


class MLP(nnx.Module):
    """down(act(up(x))).

    Args:
      width, hidden: sizes of the input and of what lies between.
      act: the activation's published name.
    """

    def __init__(self, width: int, hidden: int, act: str, *, kernel_init, rngs: nnx.Rngs):
        self.up = Linear(width, hidden, kernel_init=kernel_init, rngs=rngs)
        self.down = Linear(hidden, width, kernel_init=kernel_init, rngs=rngs)
        self.act = act

    def __call__(self, x):
        """float[..., width] -> float[..., width]."""
        return self.down(activation(self.act)(self.up(x)))
