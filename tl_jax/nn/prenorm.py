# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The pre-norm transformer as the ViT family has it: blocks, and the norm that follows the last."""

# B batch, T tokens, D width

from flax import nnx

from tl_jax.core.chain import Context
from tl_jax.nn.attention import SelfAttention
from tl_jax.nn.functions import dropout, keys
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.residual import drop_path


class Block(nnx.Module):
    """A stage: attention and MLP, each behind a norm and followed by a residual sum.

    Args:
      width, heads, hidden: of tokens, attention heads, and of the MLP between its layers.
      act: the activation's published name.
      bias: of queries, keys and values.
      causal: a token attends to itself and those before it.
      dropout, attention_dropout: of what is added to a residual, and of attention weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        act: str,
        *,
        epsilon: float,
        bias: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        kernel_init,
        rngs: nnx.Rngs,
    ):
        self.attn_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.attn = SelfAttention(
            width, heads, dropout=attention_dropout, bias=bias, causal=causal, kernel_init=kernel_init, rngs=rngs
        )
        self.mlp_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.mlp = MLP(width, hidden, act, kernel_init=kernel_init, rngs=rngs)
        self.dropout, self.drop_path = dropout, 0.0

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]; `attention_mask` of the batch, where there is one, hides tokens."""
        in_attn, after_attn, after_mlp, drop_attn, drop_mlp = keys(context.key, 5)
        y_BTD = self.attn(self.attn_norm(x_BTD), context.batch.get("attention_mask"), in_attn, context.memory)
        x_BTD = x_BTD + drop_path(dropout(y_BTD, self.dropout, after_attn), self.drop_path, drop_attn)
        y_BTD = dropout(self.mlp(self.mlp_norm(x_BTD)), self.dropout, after_mlp)
        return x_BTD + drop_path(y_BTD, self.drop_path, drop_mlp)


class Norm(LayerNorm):
    """The norm after the last block, as a stage."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        return super().__call__(x_BTD)
