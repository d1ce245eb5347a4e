# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MobileNet V2, narrow, in both ways of padding; images so large that the last maps have statistics."""

MODEL = "MobileNetV2Model"
_NET = {
    "depth_multiplier": 0.02,
    "depth_divisible_by": 4,
    "min_depth": 4,
    "expand_ratio": 2.0,
    "finegrained_output": False,
    "image_size": 97,
    "classifier_dropout_prob": 0.0,
}
CONFIGS = [_NET, _NET | {"tf_padding": False, "num_channels": 2, "hidden_act": "relu"}]
GAIN = 1.1
