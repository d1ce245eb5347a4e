# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DeBERTa, small, as v3 (shared layers, buckets) and as v2 (layers of their own, a convolution, segments)."""

from published import texts

MODEL = "DebertaV2Model"
_NET = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 12,
    "relative_attention": True,
}
CONFIGS = [
    _NET
    | {"position_biased_input": False, "share_att_key": True, "pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm"}
    | {"position_buckets": 4, "pooler_hidden_size": 16},
    _NET
    | {"pos_att_type": ["c2p", "p2c"], "conv_kernel_size": 3, "conv_groups": 2, "conv_act": "gelu"}
    # So few positions that the farthest ones share the last.
    | {"type_vocab_size": 2, "max_relative_positions": 5},
]


def batch(config, rng):
    """Ids, segments, and padding of different lengths."""
    return texts(config, rng) | {"token_type_ids": rng.integers(0, 2, (3, 7))}
