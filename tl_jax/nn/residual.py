# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What stands between a branch of a block and the residual sum."""

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.nn.functions import dropout


class LayerScale(nnx.Module):
    """One factor a channel (Touvron et al. 2021)."""

    def __init__(self, width: int, value: float):
        self.scale = nnx.Param(jnp.full(width, value))

    def __call__(self, x):
        """float[..., width] -> float[..., width]."""
        return x * self.scale[...]


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout of whole examples float[B, ...] (Huang et al. 2016): without a key, or at rate 0, `x` itself."""
    if key is None or rate == 0.0:
        return x
    return x * dropout(jnp.ones((len(x), *(1,) * (x.ndim - 1)), x.dtype), rate, key)
