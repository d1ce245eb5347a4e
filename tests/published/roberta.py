# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""RoBERTa, small; some of the ids drawn are the padding id, in the midst of a text."""

MODEL = "RobertaModel"
CONFIGS = [
    {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 10,
        "max_position_embeddings": 12,
    }
]
