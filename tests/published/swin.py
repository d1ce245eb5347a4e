# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Swin, small: feature maps that no window and no pair divides, one that a single window covers, other channels."""

MODEL = "SwinModel"
_NET = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "mlp_ratio": 2.0}
CONFIGS = [
    _NET | {"image_size": 18, "patch_size": 2, "window_size": 4},
    _NET | {"image_size": 16, "patch_size": 2, "window_size": 4, "qkv_bias": False, "num_channels": 2},
]
