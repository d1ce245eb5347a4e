# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP's text tower, small, with a common space of another width."""

MODEL = "SiglipTextModel"
CONFIGS = [
    {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 40,
        "max_position_embeddings": 12,
        "projection_size": 24,
    }
]
