# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer (Dosovitskiy et al. 2020), and DeiT where it is published in the same form.

    config = Config.from_published({"model_type": "vit", "image_size": 224, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"pixel_values": images})

Pre-norm encoder over patches and a class token, checked against `transformers`' ViTModel.
"""

# B batch, H height, W width in pixels, C channels, T tokens, D width

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn.attention import SelfAttention
from tl_jax.nn.functions import activation, dropout, keys
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.pooling import Pooler
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, published_fields

MODEL_TYPES = ("vit",)
INPUTS = ("pixel_values",)
POOLS = ("cls", "mean", "pooler")
HEADS = {"ViTForImageClassification": ("classification", {"pool": "cls"})}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names; `pooler` says whether the pooling layer is built."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler: bool = True

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        width = data.get("hidden_size", cls.hidden_size)
        config = published_fields(cls, data, {"pooler_act": ("tanh", None), "pooler_output_size": (width, None)})
        activation(config.hidden_act)
        return config

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"i": i} for i in range(self.num_hidden_layers)]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, pooler=pool == "pooler")


class Embeddings(nnx.Module):
    """Patches as tokens behind a class token, plus learned positions."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.truncated_normal(config.initializer_range), config.hidden_size
        size, patch = config.image_size, config.patch_size
        self.patch = nnx.Conv(
            config.num_channels,
            width,
            (patch, patch),
            strides=(patch, patch),
            padding="VALID",
            kernel_init=init,
            rngs=rngs,
        )
        self.cls = nnx.Param(init(rngs.params(), (1, 1, width), jnp.float32))
        self.position = nnx.Param(init(rngs.params(), (1, 1 + (size // patch) ** 2, width), jnp.float32))
        self.dropout = config.hidden_dropout_prob

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> float[B, T, D] in the parameters' dtype."""
        # Images are float32 whatever the network computes in, and the wider dtype would spread from here.
        patches = self.patch(x_BHWC.astype(self.patch.kernel.dtype))
        tokens_BTD = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        cls_B1D = jnp.broadcast_to(self.cls[...], (tokens_BTD.shape[0], 1, tokens_BTD.shape[2]))
        x_BTD = jnp.concatenate([cls_B1D, tokens_BTD], axis=1) + self.position[...]
        return dropout(x_BTD, self.dropout, context.key)


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and followed by a residual sum."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, rate = config.hidden_size, config.layer_norm_eps
        init = nnx.initializers.truncated_normal(config.initializer_range)
        self.attn_norm = LayerNorm(width, epsilon=rate, rngs=rngs)
        self.attn = SelfAttention(
            width,
            config.num_attention_heads,
            dropout=config.attention_probs_dropout_prob,
            bias=config.qkv_bias,
            kernel_init=init,
            rngs=rngs,
        )
        self.mlp_norm = LayerNorm(width, epsilon=rate, rngs=rngs)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, kernel_init=init, rngs=rngs)
        self.dropout = config.hidden_dropout_prob

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        in_attn, after_attn, after_mlp = keys(context.key, 3)
        x_BTD = x_BTD + dropout(self.attn(self.attn_norm(x_BTD), key=in_attn), self.dropout, after_attn)
        return x_BTD + dropout(self.mlp(self.mlp_norm(x_BTD)), self.dropout, after_mlp)


class Norm(LayerNorm):
    """The norm after the last block, as a stage."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        return super().__call__(x_BTD)


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, `norm`, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.norm = Norm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        names = ["stem", *(f"blocks/{i}" for i in range(config.num_hidden_layers)), "norm"]
        if config.pooler:
            init = nnx.initializers.truncated_normal(config.initializer_range)
            self.pooler = Pooler(width, width, kernel_init=init, rngs=rngs)
            names.append("pooler")
        self.chains = nnx.static({"": tuple(names)})
        self.width = width

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of the config's size.

        Raises:
          UserError: images of another size or number of channels.
        """
        x_BHWC, size = batch["pixel_values"], self.config.image_size
        expected = (size, size, self.config.num_channels)
        if x_BHWC.shape[1:] != expected:
            found = f"pixel_values are {list(x_BHWC.shape)}, this network takes [B, {', '.join(map(str, expected))}]"
            raise UserError("batch", found, f"set data.image_size={size}")
        return Carry(x_BHWC, {}, {})


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
    )
}
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
)
