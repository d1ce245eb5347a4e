# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""AST, small: patches that overlap, by another stride in either direction."""

import numpy as np

import published

MODEL = "ASTModel"
_PLAIN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "patch_size": 4,
    "frequency_stride": 3,
    "time_stride": 2,
    "max_length": 13,
    "num_mel_bins": 11,
}
CONFIGS = [_PLAIN, _PLAIN | {"qkv_bias": False}]


def batch(config, rng):
    """Three spectrograms."""
    return {"input_values": rng.normal(size=(3, config.max_length, config.num_mel_bins)).astype(np.float32)}


def expected(model, inputs):
    """As for every family, but the pooled feature before the head's norm, which here is part of pooling."""
    found = published.outputs(model, inputs)
    return {name: value for name, value in found.items() if name != "pooler_output" or "logits" not in found}
