# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DINOv2, small, with a plain and with a gated MLP; without registers and with its class' own number."""

from published import outputs

MODEL = "Dinov2Model"
_PLAIN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 12,
    "patch_size": 4,
}
CONFIGS = [_PLAIN, _PLAIN | {"use_swiglu_ffn": True, "qkv_bias": False}, _PLAIN]
UNUSED = ("mask_token",)  # Of pretraining: no output depends on it.


def expected(model, inputs):
    """A head reads more than what the bare class calls pooled."""
    named = outputs(model, inputs)
    if "logits" in named:
        del named["pooler_output"]
    return named
