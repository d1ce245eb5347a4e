# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Llama and relatives, small: fewer heads of keys, heads wider than the width allots, windows, biases."""

import numpy as np

MODEL = "LlamaModel"
_NET = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Qwen has a window in its last block only, and only if it is used; Mistral in both; Llama in none.
_WINDOW = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
_LONG = {"rope_theta": 100.0, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONG |= {"original_max_position_embeddings": 32}
CONFIGS = [
    _NET | _WINDOW | {"head_dim": 6, "rope_parameters": {"rope_theta": 50.0, "rope_type": "linear", "factor": 2.0}},
    _NET | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "rope_parameters": _LONG},
]


def batch(config, rng):
    """The reference finds the last token by the padding id. No window may hold padding alone: what comes of that is
    defined nowhere."""
    mask = (np.arange(7) < np.array([[7], [5], [4]])).astype(np.int64)
    return {"input_ids": rng.integers(1, config.vocab_size, (3, 7)) * mask, "attention_mask": mask}
