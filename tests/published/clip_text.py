# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower, small: texts that end at a token of the config, and at the largest as in the first files."""

MODEL = "CLIPTextModel"
OTHERS = ("CLIPTextModelWithProjection",)
_NET = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 12,
    "projection_dim": 8,
}
CONFIGS = [_NET | {"eos_token_id": 7}, _NET | {"eos_token_id": 2, "hidden_act": "gelu"}]


def expected(model, inputs):
    """Hidden states, the end's feature, and its projection where there is one."""
    found = model(**inputs)
    return {name: found[name] for name in ("last_hidden_state", "pooler_output", "text_embeds") if name in found}
