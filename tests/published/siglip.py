# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP, small: the classifier over the image tower, and both towers of different depth."""

from published import clip

MODEL = "SiglipModel"
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 12,
    "projection_size": 24,
}
_VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
}
CONFIGS = [{"text_config": _TEXT, "vision_config": _VISION}]
# The published classifier has a pooling layer and reads the mean.
_LAYERS = ("layernorm", "mlp.fc1", "mlp.fc2", "attention.out_proj")
_POOL = ("probe", "attention.in_proj_weight", "attention.in_proj_bias")
UNUSED = tuple(f"head.{name}" for name in (*_POOL, *(f"{n}.{end}" for n in _LAYERS for end in ("weight", "bias"))))

batch, expected = clip.batch, clip.expected
