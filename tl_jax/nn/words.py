# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The layer that predicts words, as the last stage of a decoder.

model.add_stage("lm_head", Words(width, 50257, tied="stem/word/embedding", kernel_init=init, rngs=rngs))
"""

# B batch, T time, D width, V words

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core.chain import Context
from tl_jax.core.projected import Factors


class Words(nnx.Module):
    """A score for every word at every position, without a bias.

    Args:
      width, count: of the hidden states, of words.
      tied: the full path of the word embedding that it shares; None for a kernel [D, V] of its own.
      scale: of the hidden states before it; T5 has one where the embedding is shared.

    Attributes:
      groups: of rows, each on devices of its own, for a loss that never holds all scores: the stage then leaves their
        factors. None leaves the scores.
    """

    def __init__(self, width: int, count: int, *, tied: str | None, scale: float = 1.0, kernel_init, rngs: nnx.Rngs):
        self.scale, self.groups = scale, None
        if tied is None:
            self.kernel = nnx.Param(kernel_init(rngs.params(), (width, count)))
        else:
            self.embedding = nnx.Param(jnp.zeros((count, width)))
            self.tied = nnx.static({"embedding": tied})

    def __call__(self, x_BTD: jax.Array, context: Context):
        """float[B, T, D] -> `last_hidden_state`, the same, and `logits` float32[B, T, V], or `factors` instead."""
        scaled_BTD, tied = x_BTD * self.scale, hasattr(self, "embedding")
        kernel = self.embedding[...] if tied else self.kernel[...]
        if self.groups is not None:
            factors = Factors(scaled_BTD, kernel, words=0 if tied else 1, groups=self.groups)
            return {"last_hidden_state": x_BTD, "factors": factors}
        logits_BTV = jnp.matmul(scaled_BTD, kernel.T if tied else kernel, preferred_element_type=jnp.float32)
        return {"last_hidden_state": x_BTD, "logits": logits_BTV}
