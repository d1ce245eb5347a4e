# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Self-attention of the encoder families."""

# B batch, T queries, S keys, N heads, H width of a head, D width

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.nn.functions import dropout


class SelfAttention(nnx.Module):
    """Multi-head self-attention with biases (Vaswani et al. 2017), as BERT and ViT have it."""

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0, bias: bool = True, kernel_init, rngs):
        def linear(use_bias=True):
            return nnx.Linear(width, width, use_bias=use_bias, kernel_init=kernel_init, rngs=rngs)

        self.query, self.key, self.value = linear(bias), linear(bias), linear(bias)
        self.out = linear()
        self.num_heads, self.dropout = num_heads, dropout

    def __call__(self, x_BTD, mask_BS=None, key=None):
        """float[B, T, D] -> float[B, T, D].

        Args:
          mask_BS: bool[B, S]; False positions are not attended to. An example without any True stays finite.
          key: for dropout of attention weights, or None.
        """

        def heads(y):
            return y.reshape(*y.shape[:-1], self.num_heads, -1)

        q_BTNH, k_BSNH, v_BSNH = heads(self.query(x_BTD)), heads(self.key(x_BTD)), heads(self.value(x_BTD))
        y_BTNH = attend(q_BTNH, k_BSNH, v_BSNH, mask_BS, rate=self.dropout, key=key)
        return self.out(y_BTNH.reshape(x_BTD.shape))


def attend(q_BTNH, k_BSNH, v_BSNH, mask_BS=None, *, rate: float = 0.0, key: jax.Array | None = None):
    """softmax(q k' / sqrt(H)) v with the softmax in float32.

    Args:
      q_BTNH, k_BSNH, v_BSNH: float[B, T or S, N, H].
      mask_BS: bool[B, S]; False keys are not attended to.
      rate, key: dropout of the attention weights, as the published BERT trains; the library's attention has none.

    Returns:
      float[B, T, N, H].
    """
    mask_BNTS = None if mask_BS is None else mask_BS[:, None, None, :].astype(bool)
    if key is None or rate == 0.0:
        return jax.nn.dot_product_attention(q_BTNH, k_BSNH, v_BSNH, mask=mask_BNTS)
    scores_BNTS = jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH).astype(jnp.float32) * q_BTNH.shape[-1] ** -0.5
    if mask_BNTS is not None:
        scores_BNTS = jnp.where(mask_BNTS, scores_BNTS, jnp.finfo(jnp.float32).min)
    weights_BNTS = dropout(jax.nn.softmax(scores_BNTS), rate, key).astype(v_BSNH.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights_BNTS, v_BSNH)
