# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP, small: the classifier over the image tower, and both towers of different depth."""

from published import images, texts

MODEL = "CLIPModel"
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 12,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
}
CONFIGS = [{"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 8}]


def batch(config, rng):
    """Images and padded texts."""
    return images(config.vision_config, rng) | texts(config.text_config, rng)


def expected(model, inputs):
    """What each class gives beside the hidden states of images."""
    inputs = {**inputs, "pixel_values": inputs["pixel_values"].permute(0, 3, 1, 2)}
    if not hasattr(model, "classifier"):
        found = model(**inputs)
        named = {name: found[name] for name in ("logits_per_image", "image_embeds", "text_embeds")}
        return {**named, "last_hidden_state": found.vision_model_output.last_hidden_state}
    kept = []
    hook = model.vision_model.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(inputs["pixel_values"]).logits
    hook.remove()
    return {"logits": logits, "last_hidden_state": kept[0].last_hidden_state}
