# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What stands between a branch of a block and the residual sum.

x = x + drop_path(branch(x), self.drop_path, key)     # a block whose rate is 0 until `set_drop_path(model, 0.1)`
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core.chain import Backbone
from tl_jax.core.errors import UserError
from tl_jax.nn.functions import dropout


class LayerScale(nnx.Module):
    """One factor a channel (Touvron et al. 2021)."""

    def __init__(self, width: int, value: float):
        self.scale = nnx.Param(jnp.full(width, value))

    def __call__(self, x):
        """float[..., width] -> float[..., width]."""
        return x * self.scale[...]


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """Dropout of whole examples float[B, ...] (Huang et al. 2016): without a key, or at rate 0, `x` itself."""
    if key is None or isinstance(rate, float) and rate == 0.0:
        return x
    # As an array even where it is a number: the same bits whether the blocks are stacked or not.
    return x * dropout(jnp.ones((len(x), *(1,) * (x.ndim - 1)), x.dtype), jnp.float32(rate), key)


def set_drop_path(model: Backbone, rate: float) -> None:
    """Give the blocks of every chain rates of drop path, from 0 at the first in even steps to `rate` at the last, as
    `timm` does; in place.

    A block is a stage with an attribute `drop_path`.

    Raises:
      UserError: the network has no residual branch to drop.
    """
    chains = [[model.stage(name) for name in names] for names in model.chains.values()]
    chains = [[stage for stage in stages if hasattr(stage, "drop_path")] for stages in chains]
    if not any(chains):
        raise UserError("model.drop_path", "this network has no residual blocks", "leave it out")
    for blocks in chains:
        for number, block in enumerate(blocks):
            block.drop_path = rate * number / max(len(blocks) - 1, 1)
