# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Attention: one function for all families, and the layer that most encoders put around it."""

# B batch, T queries, S keys, N heads, K heads of keys, H width of a head, D width

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core import target
from tl_jax.nn import scores
from tl_jax.nn.linear import Linear


class SelfAttention(nnx.Module):
    """Multi-head self-attention with biases (Vaswani et al. 2017), as BERT and ViT have it, and GPT-2 when `causal`."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        causal: bool = False,
        kernel_init,
        rngs,
    ):
        def linear(use_bias=True):
            return Linear(width, width, use_bias=use_bias, kernel_init=kernel_init, rngs=rngs)

        self.query, self.key, self.value = linear(bias), linear(bias), linear(bias)
        self.out = linear()
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal

    def __call__(self, x_BTD, mask_BS=None, key=None, memory=None):
        """float[B, T, D] -> float[B, T, D].

        Args:
          mask_BS: bool[B, S]; False positions are not attended to. An example without any True stays finite.
          key: for dropout of attention weights, or None.
          memory: see `attend`.
        """
        q_BTNH = heads(self.query(x_BTD), self.num_heads)
        k_BSNH, v_BSNH = heads(self.key(x_BTD), self.num_heads), heads(self.value(x_BTD), self.num_heads)
        y_BTNH = attend(q_BTNH, k_BSNH, v_BSNH, mask_BS, causal=self.causal, rate=self.dropout, key=key, memory=memory)
        return self.out(y_BTNH.reshape(x_BTD.shape))


def heads(x, num_heads: int):
    """float[..., N * H] -> float[..., N, H]."""
    return x.reshape(*x.shape[:-1], num_heads, -1)


def attend(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    mask=None,
    *,
    bias=None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    rate: float = 0.0,
    key: jax.Array | None = None,
    memory=None,
):
    """softmax(scale q k' + bias) v with the softmax in float32; a query that may attend to nothing stays finite.

    Args:
      q_BTNH: float[B, T, N, H].
      k_BSKH, v_BSKH: float[B, S, K, H]; each of the K heads serves the next N / K heads of queries.
      mask: bool[B, S], or bool[B, T, S] where it differs by query; False keys are not attended to.
      bias: float[B or 1, N or 1, T, S], or None.
      causal: query t attends to keys up to t.
      window: of those, to the last `window` alone, its own included; None for all.
      scale: 1 / sqrt(H) where None.
      rate, key: dropout of the attention weights, as the published BERT trains; the library's attention has none.
      memory: of a decoder that writes, an `nn.memory.Recall` or None. It adds the keys and values of the tokens before,
        and knows better than `mask` which of them a query sees.

    Returns:
      float[B, T, N, H].
    """
    assert causal or (window is None and memory is None), "a window and a memory look back"
    if memory is not None:
        k_BSKH, v_BSKH, mask = memory.extend(k_BSKH, v_BSKH, window)
        causal, window = False, None
    mask_BNTS = None if mask is None else jnp.expand_dims(mask, (1, 2) if mask.ndim == 2 else 1).astype(bool)
    scale = q_BTNH.shape[-1] ** -0.5 if scale is None else scale
    # A writer's one query is not worth turning all keys around.
    if (key is not None and rate > 0) or (
        memory is None and q_BTNH.dtype == jnp.float32 and target.platform() == "cpu"
    ):
        group = q_BTNH.shape[2] // k_BSKH.shape[2]
        k_BSNH, v_BSNH = (x if group == 1 else jnp.repeat(x, group, axis=2) for x in (k_BSKH, v_BSKH))
        if causal:
            behind_TS = jnp.arange(q_BTNH.shape[1])[:, None] - jnp.arange(k_BSNH.shape[1])
            seen_TS = (behind_TS >= 0) & (behind_TS < (window or behind_TS.size))
            mask_BNTS = seen_TS if mask_BNTS is None else mask_BNTS & seen_TS
        return scores.attend(q_BTNH, k_BSNH, v_BSNH, bias=bias, mask=mask_BNTS, scale=scale, rate=rate, key=key)
    implementation = _implementation(q_BTNH, k_BSKH, mask_BNTS, bias)
    if implementation == "cudnn" and mask_BNTS is not None:
        mask_BNTS = jnp.broadcast_to(mask_BNTS, (len(mask_BNTS), 1, q_BTNH.shape[1], k_BSKH.shape[1]))
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        bias,
        mask_BNTS,
        scale=scale,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )


def _implementation(q_BTNH, k_BSKH, mask, bias) -> str:
    """`cudnn`, the fused kernel, where the device has it and it takes these sizes; else `xla`."""
    (_, queries, _, width), keys = q_BTNH.shape, k_BSKH.shape[1]
    if target.platform() != "gpu" or q_BTNH.dtype != jnp.bfloat16 or bias is not None:
        return "xla"
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    # AMD's devices name an architecture here; before Ampere there is no fused kernel.
    if not capability[:1].isdigit() or float(capability) < 8.0:
        return "xla"
    # It takes a mask as a bias, whose lengths must be even when there is a gradient.
    fits = width % 8 == 0 and width <= 128 and (mask is None or (queries % 2 == 0 and keys % 2 == 0))
    return "cudnn" if fits else "xla"
