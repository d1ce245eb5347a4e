# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DeiT (Touvron et al. 2020): a Vision Transformer with a distillation token beside the class token.

    config = Config.from_published({"model_type": "deit", "image_size": 224, ...})
    named = Config.from_published({"architecture": "deit_base_distilled_patch16_224"})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images})

Checked against `transformers`' DeiTModel and `timm`. A network distilled from a teacher has a head for each of the two
tokens; its logits are their mean.
"""

import dataclasses
from typing import Any

from flax import nnx

from tl_jax.models import vit
from tl_jax.nn.functions import activation
from tl_jax.nn.vit import Encoder, Sizes
from tl_jax.weights.rules import SAME, Rule, dense, published_fields

MODEL_TYPES = ("deit",)
INPUTS = ("pixel_values",)
POOLS = ("cls", "mean", "pooler", "distilled")
HEADS = {
    "DeiTForImageClassification": ("classification", {"pool": "cls"}),
    "DeiTForImageClassificationWithTeacher": ("classification", {"pool": "distilled"}),
    "deit": ("classification", {"pool": "distilled"}),
}


@dataclasses.dataclass(frozen=True)
class Config(Sizes):
    """Sizes and rates, under their published names; see `nn.vit.Sizes`."""

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`; `timm` gives a name and arguments."""
        if "architecture" in data and "model_type" not in data:
            data = vit.from_timm(data, distilled=True)
        width = data.get("hidden_size", cls.hidden_size)
        config = published_fields(cls, data, {"pooler_act": ("tanh", None), "pooler_output_size": (width, None)})
        activation(config.hidden_act)
        return config


class Backbone(Encoder):
    """Stages `stem`, `blocks/0` …, `norm`, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config, ("cls", "distillation"), rngs=rngs)


SOURCES = {
    "hf": vit.source(
        "deit",
        (
            Rule("deit.embeddings.distillation_token", "stem/distillation", SAME),
            *dense((("cls_classifier", "head/cls"), ("distillation_classifier", "head/distillation"))),
        ),
    ),
    "timm": vit.timm_source(
        (
            Rule("dist_token", "stem/distillation", SAME),
            *dense((("head", "head/cls"), ("head_dist", "head/distillation"))),
        )
    ),
}
NO_DECAY = (r"stem/(cls|distillation|position)",)
RESIZE, SHARDING = vit.RESIZE, vit.SHARDING
