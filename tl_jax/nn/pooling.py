# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The pooling layer that encoder families publish beside their blocks."""

import jax.numpy as jnp
from flax import nnx

from tl_jax.core.chain import Context


class Pooler(nnx.Linear):
    """A stage: tanh of a dense layer over the first token."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state` float[B, T, D] and `pooler_output` float[B, D]."""
        return {"last_hidden_state": x_BTD, "pooler_output": jnp.tanh(super().__call__(x_BTD[:, 0]))}
