# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""BERT, small."""

from published import texts

MODEL = "BertModel"
CONFIGS = [
    {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 40,
        "max_position_embeddings": 12,
    }
]


def batch(config, rng):
    """Ids, segments, and padding of different lengths."""
    return texts(config, rng) | {"token_type_ids": rng.integers(0, 2, (3, 7))}
