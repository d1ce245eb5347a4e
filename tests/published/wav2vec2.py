# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""wav2vec 2.0, small: the base form, and the large one with its norms, biases and an odd number of taps."""

import numpy as np

MODEL = "Wav2Vec2Model"
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
}
LARGE = BASE | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CONFIGS = [BASE, LARGE | {"num_conv_pos_embeddings": 5}, LARGE | {"mask_time_prob": 0.0}]


def batch(config, rng):
    """Samples of two waveforms that are padded, and one that is not."""
    mask = np.arange(400) < np.array([[400], [283], [120]])
    values = rng.normal(size=mask.shape).astype(np.float32) * mask
    return {"input_values": values, "attention_mask": mask.astype(np.int64)}
