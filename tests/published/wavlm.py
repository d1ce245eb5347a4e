# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""WavLM, small: both forms, with distances in single, wide and the last bucket."""

import warnings

import numpy as np

import published

MODEL = "WavLMModel"
BASE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8, 12],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 2],
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 10,
    "num_buckets": 12,
    "max_bucket_distance": 11,
}
LARGE = BASE | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CONFIGS = [BASE, LARGE]


def batch(config, rng):
    """Samples of two waveforms that are padded, and one that is not."""
    mask = np.arange(400) < np.array([[400], [283], [120]])
    values = rng.normal(size=mask.shape).astype(np.float32) * mask
    return {"input_values": values, "attention_mask": mask.astype(np.int64)}


def expected(model, inputs):
    """As for every family; the reference mixes kinds of masks, which torch warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
        return published.outputs(model, inputs)
