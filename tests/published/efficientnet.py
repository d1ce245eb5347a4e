# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""EfficientNet, small: kernels of 3 and 5, with and without expansion, both ways of padding."""

MODEL = "EfficientNetModel"
_NET = {
    "width_coefficient": 0.25,
    "depth_coefficient": 1.0,
    "depth_divisor": 4,
    "kernel_sizes": [3, 5, 3],
    "in_channels": [32, 16, 24],
    "out_channels": [16, 24, 40],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 2, 1],
    "expand_ratios": [1, 2, 3],
    "hidden_dim": 320,
    "image_size": 33,
    "dropout_rate": 0.0,
    "drop_connect_rate": 0.0,
}
CONFIGS = [
    _NET | {"depthwise_padding": [1]},
    _NET | {"num_channels": 2, "hidden_act": "relu", "squeeze_expansion_ratio": 0.5},
]
# B2, which has every rounding of channels and depths that B7 has and 23 blocks instead of its 55.
FULL = {"width_coefficient": 1.1, "depth_coefficient": 1.2, "hidden_dim": 1408}
GAIN = 1.5
