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
from tl_jax.weights.rules import CONV, RENAMED, SAME, Rule, Source, dense, norms, published_fields, split_rows

# DeiT without a distillation token is a ViT, and `timm` publishes it as one.
MODEL_TYPES = ("vit", "deit_tiny_patch", "deit_small_patch", "deit_base_patch")
INPUTS = ("pixel_values",)
POOLS = ("cls", "mean", "pooler")
HEADS = {
    "ViTForImageClassification": ("classification", {"pool": "cls"}),
    **{name: ("classification", {"pool": "pooler"}) for name in MODEL_TYPES},
}

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
_TIMM_ONLY = {"mlp_ratio", "num_classes", "global_pool", "fc_norm", "drop_rate", "weight_init"}


@dataclasses.dataclass(frozen=True)
class Config(vit.Sizes):
    """Sizes and rates, under their published names; see `vit.Sizes`."""

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`; `timm` gives a name and arguments."""
        if "architecture" in data and "model_type" not in data:
            data = from_timm(data)
        width = data.get("hidden_size", cls.hidden_size)
        config = published_fields(cls, data, {"pooler_act": ("tanh", None), "pooler_output_size": (width, None)})
        activation(config.hidden_act)
        return config


def from_timm(data: dict[str, Any], distilled: bool = False) -> dict[str, Any]:
    """The fields that a name and arguments of `timm` stand for.

    Args:
      distilled: whether the network is one that has a distillation token.

    Raises:
      UserError: a name that is not of these, or an argument that changes the network in a way not built here.
    """
    name, given = str(data["architecture"]), data.get("model_args") or {}
    found = re.fullmatch(r"(?:vit|deit)_([a-z]+)(_distilled)?_patch(\d+)_(\d+)", name)
    if not found or found[1] not in _NAMED or bool(found[2]) != distilled:
        like = "deit_SIZE_distilled_patch16_224" if distilled else "vit_SIZE_patch16_224"
        text = f"architecture {name!r} is not built; there are {like} and the like"
        raise UserError("config.json", f"{text}, SIZE one of {', '.join(_NAMED)}")
    strange = sorted(set(given) - set(_TIMM_FIELDS) - _TIMM_ONLY)
    if strange:
        raise UserError("config.json", f"model_args.{strange[0]} is {given[strange[0]]!r}, which is not supported")
    sizes = dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads"), _NAMED[found[1]]))
    pool = data.get("global_pool", given.get("global_pool", "token"))
    if pool not in ("token", "avg"):
        raise UserError("config.json", f"global_pool is {pool!r}, only 'token' and 'avg' are supported")
    fc_norm = pool == "avg" if given.get("fc_norm") is None else given["fc_norm"]
    sizes |= {"global_pool": pool, "fc_norm": fc_norm}
    sizes |= {"patch_size": int(found[3]), "image_size": int(found[4]), "layer_norm_eps": 1e-6}
    sizes |= {ours: _side(given[theirs]) for theirs, ours in _TIMM_FIELDS.items() if theirs in given}
    sizes["intermediate_size"] = int(sizes["hidden_size"] * given.get("mlp_ratio", 4))
    return {**sizes, **data}


def _side(size: Any) -> Any:
    """The side of a square that is given by height and width; anything else as it is."""
    return size[0] if isinstance(size, list) and len(set(size)) == 1 else size


class Backbone(vit.Encoder):
    """Stages `stem`, `blocks/0` …, `norm`, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config, ("cls",), rngs=rngs)


_BLOCK = "blocks/{i}"
_QKV = tuple(f"{_BLOCK}/attn/{name}" for name in ("query", "key", "value"))


def source(kind: str, rows: tuple[Rule, ...] = ()) -> Source:
    """The key map of `transformers` for the networks of this form, whose names differ in what they begin with.

    Args:
      kind: `vit` or `deit`.
      rows: what only this kind has.
    """
    theirs, stem = f"{kind}.encoder.layer.{{i}}", f"{kind}.embeddings"
    linear = (
        (f"{theirs}.attention.attention.query", f"{_BLOCK}/attn/query"),
        (f"{theirs}.attention.attention.key", f"{_BLOCK}/attn/key"),
        (f"{theirs}.attention.attention.value", f"{_BLOCK}/attn/value"),
        (f"{theirs}.attention.output.dense", f"{_BLOCK}/attn/out"),
        (f"{theirs}.intermediate.dense", f"{_BLOCK}/mlp/up"),
        (f"{theirs}.output.dense", f"{_BLOCK}/mlp/down"),
        (f"{kind}.pooler.dense", "pooler"),
        ("classifier", "head"),
    )
    norm = (
        (f"{theirs}.layernorm_before", f"{_BLOCK}/attn_norm"),
        (f"{theirs}.layernorm_after", f"{_BLOCK}/mlp_norm"),
        (f"{kind}.layernorm", "norm"),
    )
    return Source(
        rules=(
            Rule(f"{stem}.cls_token", "stem/cls", SAME),
            Rule(f"{stem}.position_embeddings", "stem/position", SAME),
            *dense(((f"{stem}.patch_embeddings.projection", "stem/patch"),), CONV),
            *dense(linear),
            *norms(norm),
            *rows,
        ),
        prefix=f"{kind}.",
        ignored=(rf"{kind}\.embeddings\.mask_token", r"decoder\..*"),
        optional=(rf"{kind}\.pooler\..*", r"(\w+_)?classifier\..*"),
        modules=(*RENAMED, (r"\.encoder\.layer\.", ".layers.")),
    )


def timm_source(rows: tuple[Rule, ...] = ()) -> Source:
    """The key map of `timm`, in which all of them are named alike; `rows` are what only one kind has."""
    theirs = "blocks.{i}"
    linear = (
        (f"{theirs}.attn.proj", f"{_BLOCK}/attn/out"),
        (f"{theirs}.mlp.fc1", f"{_BLOCK}/mlp/up"),
        (f"{theirs}.mlp.fc2", f"{_BLOCK}/mlp/down"),
        ("head", "head"),
    )
    norm = (
        (f"{theirs}.norm1", f"{_BLOCK}/attn_norm"),
        (f"{theirs}.norm2", f"{_BLOCK}/mlp_norm"),
        ("norm", "norm"),
        ("fc_norm", "pooler/norm"),
    )
    return Source(
        rules=(
            Rule("cls_token", "stem/cls", SAME),
            Rule("pos_embed", "stem/position", SAME),
            *dense((("patch_embed.proj", "stem/patch"),), CONV),
            Rule(f"{theirs}.attn.qkv.weight", tuple(f"{path}/kernel" for path in _QKV), split_rows(3)),
            Rule(f"{theirs}.attn.qkv.bias", tuple(f"{path}/bias" for path in _QKV), split_rows(3)),
            *dense(linear),
            *norms(norm),
            *rows,
        ),
        optional=(r"head(_dist)?\..*", r"fc_norm\..*"),
    )


SOURCES = {"hf": source("vit"), "timm": timm_source()}
NO_DECAY = (r"stem/(cls|position)",)
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
