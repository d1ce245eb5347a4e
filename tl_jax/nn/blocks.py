# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The transformer block of BERT's descendants."""

# B batch, T time, D width

from flax import nnx

from tl_jax.core.chain import Context
from tl_jax.nn.attention import SelfAttention
from tl_jax.nn.functions import dropout, keys
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.residual import drop_path


class PostNormBlock(nnx.Module):
    """A stage: attention and MLP, each followed by a residual sum and a norm.

    Args:
      width, num_heads, hidden: sizes.
      act: the activation's published name.
      epsilon: of the norms.
      rates: of dropout: of the attention weights, after the attention, after the MLP.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        act: str,
        *,
        epsilon: float,
        rates: tuple[float, float, float],
        kernel_init,
        rngs: nnx.Rngs,
    ):
        self.attn = SelfAttention(width, num_heads, dropout=rates[0], kernel_init=kernel_init, rngs=rngs)
        self.attn_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.mlp = MLP(width, hidden, act, kernel_init=kernel_init, rngs=rngs)
        self.mlp_norm = LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.rates, self.drop_path = rates, 0.0

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]; `attention_mask` is among the batch's invariants."""
        in_attn, after_attn, after_mlp, drop_attn, drop_mlp = keys(context.key, 5)
        y_BTD = dropout(self.attn(x_BTD, context.batch["attention_mask"], in_attn), self.rates[1], after_attn)
        x_BTD = self.attn_norm(x_BTD + drop_path(y_BTD, self.drop_path, drop_attn))
        y_BTD = dropout(self.mlp(x_BTD), self.rates[2], after_mlp)
        return self.mlp_norm(x_BTD + drop_path(y_BTD, self.drop_path, drop_mlp))
