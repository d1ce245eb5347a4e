# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DeiT, small, with and without biases of queries, keys and values."""

MODEL = "DeiTModel"
_PLAIN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 12,
    "patch_size": 4,
}
CONFIGS = [_PLAIN, _PLAIN | {"qkv_bias": False}]
