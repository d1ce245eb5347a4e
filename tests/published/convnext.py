# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt, small, with layer scales; without them, and other channels, patches and activations. Both versions."""

MODEL = "ConvNextModel"
_NET = {"hidden_sizes": [8, 16], "depths": [2, 1], "num_stages": 2, "image_size": 33}
CONFIGS = [
    _NET,
    _NET | {"layer_scale_init_value": 0.0, "num_channels": 2, "patch_size": 3, "hidden_act": "relu"},
]
