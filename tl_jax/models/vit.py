# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer (Dosovitskiy et al. 2020), as `transformers` and `timm` publish it.

    config = Config.from_published({"model_type": "vit", "image_size": 224, ...})
    named = Config.from_published({"architecture": "vit_base_patch16_224"})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images})

Pre-norm encoder over patches and a class token, checked against `transformers`' ViTModel and `timm`.
"""

import dataclasses
import re
from typing import Any

from flax import nnx

from tl_jax.core.errors import UserError
from tl_jax.nn import vit
from tl_jax.nn.functions import activation
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, published_fields, split_rows

# DeiT without a distillation token is a ViT, and `timm` publishes it as one.
MODEL_TYPES = ("vit", "deit_tiny_patch", "deit_small_patch", "deit_base_patch")
INPUTS = ("pixel_values",)
POOLS = ("cls", "mean", "pooler")
HEADS = {name: ("classification", {"pool": "cls"}) for name in ("ViTForImageClassification", *MODEL_TYPES)}

_NAMED = {  # in `timm`: width, blocks, attention heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# Arguments of `timm` by our names, and those that change nothing here; it has others.
_TIMM_FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "qkv_bias": "qkv_bias",
    "attn_drop_rate": "attention_probs_dropout_prob",
}
_TIMM_ONLY = {"mlp_ratio", "num_classes", "global_pool", "drop_rate", "weight_init"}


@dataclasses.dataclass(frozen=True)
class Config(vit.Sizes):
    """Sizes and rates, under their published names; see `vit.Sizes`."""

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`; `timm` gives a name and arguments."""
        if "architecture" in data and "model_type" not in data:
            data = _from_timm(data)
        width = data.get("hidden_size", cls.hidden_size)
        refused = {"pooler_act": ("tanh", None), "pooler_output_size": (width, None), "global_pool": ("token",)}
        config = published_fields(cls, data, refused)
        activation(config.hidden_act)
        return config


def _from_timm(data: dict[str, Any]) -> dict[str, Any]:
    name, given = str(data["architecture"]), data.get("model_args") or {}
    found = re.fullmatch(r"(?:vit|deit)_([a-z]+)_patch(\d+)_(\d+)", name)
    if not found or found[1] not in _NAMED:
        text = f"architecture {name!r} is not built; there are vit_SIZE_patch16_224 and the like"
        raise UserError("config.json", f"{text}, SIZE one of {', '.join(_NAMED)}")
    strange = sorted(set(given) - set(_TIMM_FIELDS) - _TIMM_ONLY)
    if strange:
        raise UserError("config.json", f"model_args.{strange[0]} is {given[strange[0]]!r}, which is not supported")
    sizes = dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads"), _NAMED[found[1]]))
    sizes |= {"patch_size": int(found[2]), "image_size": int(found[3]), "layer_norm_eps": 1e-6, "pooler": False}
    sizes |= {ours: _side(given[theirs]) for theirs, ours in _TIMM_FIELDS.items() if theirs in given}
    sizes["intermediate_size"] = int(sizes["hidden_size"] * given.get("mlp_ratio", 4))
    return {**given, **sizes, **data}


def _side(size: Any) -> Any:
    """The side of a square that is given by height and width; anything else as it is."""
    return size[0] if isinstance(size, list) and len(set(size)) == 1 else size


class Backbone(vit.Encoder):
    """Stages `stem`, `blocks/0` …, `norm`, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config, ("cls",), rngs=rngs)


_HF, _BLOCK = "vit.encoder.layer.{i}", "blocks/{i}"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.attention.query", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.attention.key", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.attention.value", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.output.dense", f"{_BLOCK}/attn/out"),
    (f"{_HF}.intermediate.dense", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.output.dense", f"{_BLOCK}/mlp/down"),
    ("vit.pooler.dense", "pooler"),
    ("classifier", "head"),
)
_NORM = (
    (f"{_HF}.layernorm_before", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.layernorm_after", f"{_BLOCK}/mlp_norm"),
    ("vit.layernorm", "norm"),
)
_TIMM = "blocks.{i}"
_TIMM_LINEAR = (
    (f"{_TIMM}.attn.proj", f"{_BLOCK}/attn/out"),
    (f"{_TIMM}.mlp.fc1", f"{_BLOCK}/mlp/up"),
    (f"{_TIMM}.mlp.fc2", f"{_BLOCK}/mlp/down"),
    ("head", "head"),
)
_TIMM_NORM = ((f"{_TIMM}.norm1", f"{_BLOCK}/attn_norm"), (f"{_TIMM}.norm2", f"{_BLOCK}/mlp_norm"), ("norm", "norm"))
_QKV = tuple(f"{_BLOCK}/attn/{name}" for name in ("query", "key", "value"))
SOURCES = {
    "hf": Source(
        rules=(
            Rule("vit.embeddings.cls_token", "stem/cls", SAME),
            Rule("vit.embeddings.position_embeddings", "stem/position", SAME),
            Rule("vit.embeddings.patch_embeddings.projection.weight", "stem/patch/kernel", CONV),
            Rule("vit.embeddings.patch_embeddings.projection.bias", "stem/patch/bias", SAME),
            *(Rule(f"{name}.weight", f"{path}/kernel", LINEAR) for name, path in _LINEAR),
            *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in _LINEAR),
            *(Rule(f"{name}.weight", f"{path}/scale", SAME) for name, path in _NORM),
            *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in _NORM),
        ),
        prefix="vit.",
        ignored=(r"vit\.embeddings\.mask_token", r"decoder\..*"),
        optional=(r"vit\.pooler\..*", r"classifier\..*"),
    ),
    "timm": Source(
        rules=(
            Rule("cls_token", "stem/cls", SAME),
            Rule("pos_embed", "stem/position", SAME),
            Rule("patch_embed.proj.weight", "stem/patch/kernel", CONV),
            Rule("patch_embed.proj.bias", "stem/patch/bias", SAME),
            Rule(f"{_TIMM}.attn.qkv.weight", tuple(f"{path}/kernel" for path in _QKV), split_rows(3)),
            Rule(f"{_TIMM}.attn.qkv.bias", tuple(f"{path}/bias" for path in _QKV), split_rows(3)),
            *(Rule(f"{name}.weight", f"{path}/kernel", LINEAR) for name, path in _TIMM_LINEAR),
            *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in _TIMM_LINEAR),
            *(Rule(f"{name}.weight", f"{path}/scale", SAME) for name, path in _TIMM_NORM),
            *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in _TIMM_NORM),
        ),
        optional=(r"head\..*",),
    ),
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
