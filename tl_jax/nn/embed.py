# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A table of vectors by number."""

import jax
import jax.numpy as jnp
from flax import nnx


class Embed(nnx.Embed):
    """`nnx.Embed` that computes in the dtype of its table now: the base class keeps that of its construction, so that
    a network cast to bfloat16 would go on in float32 from here."""

    def __call__(self, ids: jax.Array):
        """int[...] -> [..., width] in the table's dtype; NaN for a number beyond its end."""
        return jnp.take(self.embedding[...], ids, axis=0)
