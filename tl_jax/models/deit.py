# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DeiT (Touvron et al. 2020): a Vision Transformer with a distillation token beside the class token.

    config = Config.from_published({"model_type": "deit", "image_size": 224, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"pixel_values": images})

Checked against `transformers`' DeiTModel. Of a file with two heads, which were distilled from a teacher, neither is
used: a new head reads the class token.
"""

import dataclasses
from typing import Any

from flax import nnx

from tl_jax.nn import vit
from tl_jax.nn.functions import activation
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, published_fields

MODEL_TYPES = ("deit",)
INPUTS = ("pixel_values",)
POOLS = ("cls", "mean", "pooler")
HEADS = {"DeiTForImageClassification": ("classification", {"pool": "cls"})}


@dataclasses.dataclass(frozen=True)
class Config(vit.Sizes):
    """Sizes and rates, under their published names; see `vit.Sizes`."""

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        width = data.get("hidden_size", cls.hidden_size)
        config = published_fields(cls, data, {"pooler_act": ("tanh", None), "pooler_output_size": (width, None)})
        activation(config.hidden_act)
        return config


class Backbone(vit.Encoder):
    """Stages `stem`, `blocks/0` …, `norm`, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config, ("cls", "distillation"), rngs=rngs)


_HF, _BLOCK = "deit.encoder.layer.{i}", "blocks/{i}"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.attention.query", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.attention.key", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.attention.value", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.output.dense", f"{_BLOCK}/attn/out"),
    (f"{_HF}.intermediate.dense", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.output.dense", f"{_BLOCK}/mlp/down"),
    ("deit.pooler.dense", "pooler"),
    ("classifier", "head"),
)
_NORM = (
    (f"{_HF}.layernorm_before", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.layernorm_after", f"{_BLOCK}/mlp_norm"),
    ("deit.layernorm", "norm"),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule("deit.embeddings.cls_token", "stem/cls", SAME),
            Rule("deit.embeddings.distillation_token", "stem/distillation", SAME),
            Rule("deit.embeddings.position_embeddings", "stem/position", SAME),
            Rule("deit.embeddings.patch_embeddings.projection.weight", "stem/patch/kernel", CONV),
            Rule("deit.embeddings.patch_embeddings.projection.bias", "stem/patch/bias", SAME),
            *(Rule(f"{name}.weight", f"{path}/kernel", LINEAR) for name, path in _LINEAR),
            *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in _LINEAR),
            *(Rule(f"{name}.weight", f"{path}/scale", SAME) for name, path in _NORM),
            *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in _NORM),
        ),
        prefix="deit.",
        ignored=(r"deit\.embeddings\.mask_token", r"decoder\..*", r"(cls|distillation)_classifier\..*"),
        optional=(r"deit\.pooler\..*", r"classifier\..*"),
    )
}
RESIZE = (  # (path, how, published fields that ask for it); see `weights.surgery`
    ("stem/position", "grid", ("image_size", "patch_size")),
    ("stem/patch/kernel", "patch", ("patch_size",)),
    ("stem/patch/kernel", "channels", ("num_channels",)),
)
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
)
