# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DINOv2 (Oquab et al. 2023), also with registers (Darcet et al. 2023).

    config = Config.from_published({"model_type": "dinov2", "image_size": 518, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"pixel_values": images})

A Vision Transformer with layer scale and, in the largest, a gated MLP; checked against `transformers`' Dinov2Model and
Dinov2WithRegistersModel. Images are of the config's size; `model.config` may ask for another.
"""

# B batch, H height, W width in pixels, C channels, T tokens, D width

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.nn.attention import SelfAttention
from tl_jax.nn.functions import activation, dropout, keys
from tl_jax.nn.linear import Linear
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.patches import Patches, images, tokens
from tl_jax.nn.prenorm import Norm
from tl_jax.nn.residual import LayerScale, drop_path
from tl_jax.weights.rules import CONV, RENAMED, SAME, Rule, Source, dense, norms, published_fields, split_rows

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
INPUTS = ("pixel_values",)
POOLS = ("pooler", "cls", "mean")
_HEADS = ("Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification")
HEADS = {name: ("classification", {"pool": "pooler"}) for name in _HEADS}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      num_register_tokens: learned tokens between the class token and the patches, without positions; published as
        another `model_type`.
      pooler: the pooled feature is the class token beside the mean over patches, not the class token alone.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    num_register_tokens: int = 0
    pooler: bool = True

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        if data.get("model_type") == "dinov2_with_registers":
            data = {"num_register_tokens": 4, "patch_size": 16, **data}
        else:
            data = {**data, "num_register_tokens": 0}
        config = published_fields(cls, data)
        activation(config.hidden_act)
        return config

    def indices(self) -> list[dict[str, Any]]:
        """Values of the placeholders in the key map; `f` is what the published class calls itself."""
        own = MODEL_TYPES[self.num_register_tokens > 0]
        return [{"i": i, "f": own} for i in range(self.num_hidden_layers)]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, pooler=pool == "pooler")


class Embeddings(nnx.Module):
    """Patches as tokens behind a class token, plus learned positions, and registers between the two."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.truncated_normal(config.initializer_range), config.hidden_size
        self.patch = Patches(config.num_channels, width, config.patch_size, kernel_init=init, rngs=rngs)
        self.cls = nnx.Param(init(rngs.params(), (1, 1, width), jnp.float32))
        count = 1 + (config.image_size // config.patch_size) ** 2
        self.position = nnx.Param(init(rngs.params(), (1, count, width), jnp.float32))
        registers = config.num_register_tokens
        self.register = nnx.Param(jnp.zeros((1, registers, width))) if registers else None
        self.dropout = config.hidden_dropout_prob

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> float[B, T, D] in the parameters' dtype."""
        x_BTD = tokens(self.patch(x_BHWC), self.cls[...]) + self.position[...]
        if self.register is not None:
            registers = jnp.broadcast_to(self.register[...], (x_BTD.shape[0], *self.register.shape[1:]))
            x_BTD = jnp.concatenate([x_BTD[:, :1], registers, x_BTD[:, 1:]], axis=1)
        return dropout(x_BTD, self.dropout, context.key)


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020), with biases."""

    def __init__(self, width: int, hidden: int, *, kernel_init, rngs: nnx.Rngs):
        self.gate = Linear(width, hidden, kernel_init=kernel_init, rngs=rngs)
        self.up = Linear(width, hidden, kernel_init=kernel_init, rngs=rngs)
        self.down = Linear(hidden, width, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x):
        """float[..., width] -> float[..., width]."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm, scaled by channel and followed by a residual sum."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, eps = config.hidden_size, config.layer_norm_eps
        init = nnx.initializers.truncated_normal(config.initializer_range)
        self.attn_norm = LayerNorm(width, epsilon=eps, rngs=rngs)
        self.attn = SelfAttention(
            width,
            config.num_attention_heads,
            dropout=config.attention_probs_dropout_prob,
            bias=config.qkv_bias,
            kernel_init=init,
            rngs=rngs,
        )
        self.attn_scale = LayerScale(width, config.layerscale_value)
        self.mlp_norm = LayerNorm(width, epsilon=eps, rngs=rngs)
        hidden = int(width * config.mlp_ratio)
        if config.use_swiglu_ffn:
            # Two thirds of the width, so that three kernels hold about what two held, in multiples of 8.
            self.gated = GatedMLP(width, (hidden * 2 // 3 + 7) // 8 * 8, kernel_init=init, rngs=rngs)
        else:
            self.mlp = MLP(width, hidden, config.hidden_act, kernel_init=init, rngs=rngs)
        self.mlp_scale = LayerScale(width, config.layerscale_value)
        self.is_gated, self.drop_path = config.use_swiglu_ffn, config.drop_path_rate

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        in_attn, after_attn, after_mlp = keys(context.key, 3)
        y_BTD = self.attn_scale(self.attn(self.attn_norm(x_BTD), key=in_attn))
        x_BTD = x_BTD + drop_path(y_BTD, self.drop_path, after_attn)
        mlp = self.gated if self.is_gated else self.mlp
        y_BTD = self.mlp_scale(mlp(self.mlp_norm(x_BTD)))
        return x_BTD + drop_path(y_BTD, self.drop_path, after_mlp)


class Pool(nnx.Module):
    """The class token, with the mean over the patches beside it where a head reads both; a stage without parameters.

    Args:
      first: how many tokens stand before the patches.
    """

    def __init__(self, first: int, both: bool):
        self.first, self.both = first, both

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state`, the same, and `pooler_output` float[B, D or 2 D]."""
        pooled = x_BTD[:, 0]
        if self.both:
            pooled = jnp.concatenate([pooled, x_BTD[:, self.first :].mean(axis=1)], axis=-1)
        return {"last_hidden_state": x_BTD, "pooler_output": pooled}


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, `norm` and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs)
        self.pool = Pool(1 + config.num_register_tokens, config.pooler)
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(self.blocks))), "norm", "pool")})
        self.width = config.hidden_size * (1 + config.pooler)

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of the config's size.

        Raises:
          UserError: images of another size or number of channels.
        """
        return Carry(images(batch, self.config.image_size, self.config.num_channels), {}, {})


_HF, _BLOCK, _STEM = "{f}.encoder.layer.{i}", "blocks/{i}", "{f}.embeddings"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.attention.query", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.attention.key", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.attention.value", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.output.dense", f"{_BLOCK}/attn/out"),
    (f"{_HF}.mlp.fc1", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.mlp.fc2", f"{_BLOCK}/mlp/down"),
    (f"{_HF}.mlp.weights_out", f"{_BLOCK}/gated/down"),
    ("classifier", "head"),
)
_NORM = (
    (f"{_HF}.norm1", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.norm2", f"{_BLOCK}/mlp_norm"),
    ("{f}.layernorm", "norm"),
)
_GATED = f"{_BLOCK}/gated/gate", f"{_BLOCK}/gated/up"
SOURCES = {
    "hf": Source(
        rules=(
            Rule(f"{_STEM}.cls_token", "stem/cls", SAME),
            Rule(f"{_STEM}.register_tokens", "stem/register", SAME),
            Rule(f"{_STEM}.position_embeddings", "stem/position", SAME),
            Rule(f"{_STEM}.patch_embeddings.projection.weight", "stem/patch/kernel", CONV),
            Rule(f"{_STEM}.patch_embeddings.projection.bias", "stem/patch/bias", SAME),
            Rule(f"{_HF}.layer_scale1.lambda1", f"{_BLOCK}/attn_scale/scale", SAME),
            Rule(f"{_HF}.layer_scale2.lambda1", f"{_BLOCK}/mlp_scale/scale", SAME),
            Rule(f"{_HF}.mlp.weights_in.weight", tuple(f"{path}/kernel" for path in _GATED), split_rows(2)),
            Rule(f"{_HF}.mlp.weights_in.bias", tuple(f"{path}/bias" for path in _GATED), split_rows(2)),
            *dense(_LINEAR),
            *norms(_NORM),
        ),
        prefix="dinov2.",
        aliases=((r"^", "dinov2_with_registers."),),  # The same prefix for the other class.
        ignored=(r"(.*\.)?embeddings\.mask_token",),
        optional=(r"classifier\..*",),
        modules=RENAMED,
    )
}
NO_DECAY = (r"stem/(cls|register|position)",)
RESIZE = (  # (path, how, published fields that ask for it); see `weights.surgery`
    ("stem/position", "grid", ("image_size", "patch_size")),
    ("stem/patch/kernel", "patch", ("patch_size",)),
    ("stem/patch/kernel", "channels", ("num_channels",)),
)
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up|gated/(gate|up))/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up|gated/(gate|up))/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|(mlp|gated)/down)/kernel", ("tensor", None)),
)
