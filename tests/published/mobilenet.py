# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MobileNet V1, narrow, in both ways of padding; images so large that the last maps have statistics."""

MODEL = "MobileNetV1Model"
_NET = {"depth_multiplier": 0.02, "min_depth": 4, "image_size": 97, "classifier_dropout_prob": 0.0}
CONFIGS = [_NET, _NET | {"tf_padding": False, "num_channels": 2, "hidden_act": "relu"}]
GAIN = 1.8
