# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The layer that predicts words, as the last stage of a decoder.

model.add_stage("lm_head", Words(width, 50257, tied="stem/word/embedding", kernel_init=init, rngs=rngs))
"""

# B batch, T time, D width, V words

import jax.numpy as jnp
from flax import nnx

from tl_jax.core.chain import Context


class Words(nnx.Module):
    """A score for every word at every position, without a bias.

    Args:
      width, count: of the hidden states, of words.
      tied: the full path of the word embedding that it shares; None for a kernel [D, V] of its own.
      scale: of the hidden states before it; T5 has one where the embedding is shared.
    """

    def __init__(self, width: int, count: int, *, tied: str | None, scale: float = 1.0, kernel_init, rngs: nnx.Rngs):
        self.scale = scale
        if tied is None:
            self.kernel = nnx.Param(kernel_init(rngs.params(), (width, count)))
        else:
            self.embedding = nnx.Param(jnp.zeros((count, width)))
            self.tied = nnx.static({"embedding": tied})

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state`, the same, and `logits` float32[B, T, V]."""
        kernel_DV = self.embedding[...].T if hasattr(self, "embedding") else self.kernel[...]
        logits_BTV = jnp.matmul(x_BTD * self.scale, kernel_DV, preferred_element_type=jnp.float32)
        return {"last_hidden_state": x_BTD, "logits": logits_BTV}
