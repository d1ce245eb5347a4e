# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""ResNet, small: both kinds of block, both places of the stride, other channels and activations."""

MODEL = "ResNetModel"
_NET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1]}
_DEEP = _NET | {"layer_type": "bottleneck", "depths": [1, 1]}
CONFIGS = [
    _NET | {"layer_type": "basic", "downsample_in_first_stage": True},
    _DEEP | {"downsample_in_bottleneck": True},
    _DEEP | {"num_channels": 2, "hidden_act": "silu"},
]
