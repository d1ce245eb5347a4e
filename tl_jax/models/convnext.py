# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt (Liu et al. 2022), and ConvNeXt V2 (Woo et al. 2023), which normalises responses instead of scaling layers.

    config = Config.from_published({"model_type": "convnext", "depths": [3, 3, 9, 3], ...})
    named = Config.from_published({"architecture": "convnext_tiny"})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images})

Checked against `transformers`' ConvNextModel and ConvNextV2Model, and against `timm`.
"""

# B batch, H height, W width, C channels, D channels at the end

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError, did_you_mean
from tl_jax.nn import conv
from tl_jax.nn.convolution import Conv
from tl_jax.nn.functions import activation
from tl_jax.nn.linear import Linear
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.residual import drop_path
from tl_jax.weights.rules import CONV, SAME, Layout, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("convnext", "convnextv2")
INPUTS = ("pixel_values",)
POOLS = ("pooler",)
_HEADS = ("ConvNextForImageClassification", "ConvNextV2ForImageClassification", "convnext")
HEADS = {name: ("classification", {}) for name in _HEADS}

# Sizes that `timm` names: depths, and channels of the first level, which every level doubles.
_SMALL = {
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
}
_DEPTHS = (3, 3, 27, 3)
_LARGE = {
    "tiny": ((3, 3, 9, 3), 96),
    "small": (_DEPTHS, 96),
    "base": (_DEPTHS, 128),
    "large": (_DEPTHS, 192),
    "xlarge": (_DEPTHS, 256),
    "huge": (_DEPTHS, 352),
}
_NAMED = {f"{kind}_{size}" for kind in ("convnext", "convnextv2") for size in (*_SMALL, *_LARGE)}
_NAMED -= {"convnext_huge", "convnextv2_xlarge"}
# Arguments of `timm` that are not built.
_TIMM_ONLY = {
    "global_pool": ("avg",),
    "head_hidden_size": (None, 0),
    "head_norm_first": (False,),
    "kernel_sizes": (7,),
    "norm_layer": (None, "layernorm"),
    "output_stride": (32,),
    "stem_type": ("patch",),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      hidden_sizes, depths: channels and blocks of each resolution level; every level but the first halves the image.
      layer_norm_eps: of the norm behind the mean over the image.
      layer_scale_init_value: 0 for none.
      drop_path_rate: of the last block; it grows from 0 at the first.
      response_norm: V2's; published as another `model_type`.
      norm_eps: of all norms but the last, which the published config leaves out.
      conv_mlp: the MLP's layers are convolutions of one pixel, as the smaller networks of `timm` have them.
    """

    num_channels: int = 3
    patch_size: int = 4
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    layer_scale_init_value: float = 1e-6
    drop_path_rate: float = 0.0
    response_norm: bool = False
    norm_eps: float = 1e-6
    conv_mlp: bool = False

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`; `timm` gives a name and arguments."""
        if "architecture" in data and "model_type" not in data:
            data = _from_timm(data)
        elif data.get("model_type") == "convnextv2":
            data = {**data, "response_norm": True, "layer_scale_init_value": 0.0}
        count = len(data.get("depths", cls.depths))
        config = published_fields(cls, data, {**_TIMM_ONLY, "num_stages": (count, None)})
        activation(config.hidden_act)
        if len(config.depths) != len(config.hidden_sizes) or not all(config.depths):
            found = f"depths {list(config.depths)} and hidden_sizes {list(config.hidden_sizes)}"
            raise UserError("config.json", f"{found} must be of one length, every depth at least 1")
        return config

    def levels(self) -> list[tuple[int, int]]:
        """(resolution level, number within it) of every block."""
        return [(level, number) for level, depth in enumerate(self.depths) for number in range(depth)]

    def indices(self) -> list[dict[str, Any]]:
        """Values of the placeholders in the key map: `b` counts blocks, `s` levels, `l` blocks of a level; `f` is what
        the published class calls itself."""
        own = "convnextv2" if self.response_norm else "convnext"
        return [{"b": b, "s": s, "l": l, "f": own} for b, (s, l) in enumerate(self.levels())]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


def _from_timm(data: dict[str, Any]) -> dict[str, Any]:
    name, given = data["architecture"], data.get("model_args", {})
    if name not in _NAMED:
        raise UserError("config.json", f"architecture {name!r} is not built{did_you_mean(name, _NAMED)}")
    size = name.partition("_")[2]
    depths, width = {**_SMALL, **_LARGE}[size]
    second, eps = name.startswith("convnextv2"), given.get("norm_eps", 1e-6)
    given = {"depths": depths, "ls_init_value": None if second else 1e-6, "conv_mlp": size in _SMALL, **given}
    fields = {
        "hidden_sizes": given.get("dims", [width, 2 * width, 4 * width, 8 * width]),
        "num_channels": given.get("in_chans", 3),
        "hidden_act": given.get("act_layer", "gelu"),
        "response_norm": given.get("use_grn", second),
        "layer_scale_init_value": given["ls_init_value"] or 0.0,
        "norm_eps": eps,
        "layer_norm_eps": eps,
    }
    return {**given, **fields}


class Stem(nnx.Module):
    """From pixels to normalised patches."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.patch = _conv(config, config.num_channels, config.hidden_sizes[0], config.patch_size, rngs)
        self.norm = LayerNorm(config.hidden_sizes[0], epsilon=config.norm_eps, rngs=rngs)

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> feature map in the parameters' dtype."""
        # Images are float32 whatever the network computes in, and the wider dtype would spread from here.
        return self.norm(self.patch(x_BHWC.astype(self.patch.kernel.dtype)))


class ResponseNorm(nnx.Module):
    """Global response normalisation: each channel by its L2 norm over the image, relative to the channels' mean."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.zeros(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x_BHWC):
        """float[B, H, W, C] -> the same; starts as the identity."""
        squares_B11C = jnp.square(x_BHWC.astype(jnp.float32)).sum(axis=(1, 2), keepdims=True)
        # A root has no slope at zero, where a dead channel is.
        norm_B11C = jnp.sqrt(jnp.maximum(squares_B11C, jnp.finfo(jnp.float32).tiny))
        relative_B11C = (norm_B11C / (norm_B11C.mean(axis=-1, keepdims=True) + 1e-6)).astype(x_BHWC.dtype)
        return self.scale[...] * (x_BHWC * relative_B11C) + self.bias[...] + x_BHWC


class Block(nnx.Module):
    """Depthwise 7x7 convolution, norm and MLP, and the sum; the first block of a level halves the image before."""

    def __init__(self, config: Config, inputs: int, width: int, halves: bool, drop_path: float, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initializer_range)
        if halves:
            self.down_norm = LayerNorm(inputs, epsilon=config.norm_eps, rngs=rngs)
            self.down_conv = _conv(config, inputs, width, 2, rngs)
        self.depthwise = Conv(width, width, (7, 7), padding=3, feature_group_count=width, kernel_init=init, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=config.norm_eps, rngs=rngs)
        if config.conv_mlp:
            self.expand = Conv(width, 4 * width, (1, 1), kernel_init=init, rngs=rngs)
            self.reduce = Conv(4 * width, width, (1, 1), kernel_init=init, rngs=rngs)
        else:
            self.up = Linear(width, 4 * width, kernel_init=init, rngs=rngs)
            self.down = Linear(4 * width, width, kernel_init=init, rngs=rngs)
        self.response = ResponseNorm(4 * width) if config.response_norm else None
        scale = config.layer_scale_init_value
        self.layer_scale = nnx.Param(jnp.full(width, scale)) if scale > 0 else None
        self.halves, self.act, self.drop_path, self.conv_mlp = halves, config.hidden_act, drop_path, config.conv_mlp

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, inputs] -> float[B, H, W, width], or half of H and W."""
        if self.halves:
            x_BHWC = self.down_conv(self.down_norm(x_BHWC))
        up, down = (self.expand, self.reduce) if self.conv_mlp else (self.up, self.down)
        y_BHWC = activation(self.act)(up(self.norm(self.depthwise(x_BHWC))))
        if self.response is not None:
            y_BHWC = self.response(y_BHWC)
        y_BHWC = down(y_BHWC)
        if self.layer_scale is not None:
            y_BHWC = self.layer_scale[...] * y_BHWC
        return x_BHWC + drop_path(y_BHWC, self.drop_path, context.key)


class Pooler(LayerNorm):
    """The norm of the mean over the image, as a stage."""

    def __call__(self, x_BHWD, context: Context):
        """float[B, H, W, D] -> `last_hidden_state`, the same, and `pooler_output` float[B, D]."""
        outputs = conv.mean_pooled(x_BHWD)
        return {**outputs, "pooler_output": super().__call__(outputs["pooler_output"])}


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … counted over all resolution levels, and `pooler`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        blocks, width, levels = [], config.hidden_sizes[0], config.levels()
        for i, (level, number) in enumerate(levels):
            halves, outputs = level > 0 and number == 0, config.hidden_sizes[level]
            rate = config.drop_path_rate * i / max(len(levels) - 1, 1)
            blocks.append(Block(config, width, outputs, halves, rate, rngs=rngs))
            width = outputs
        self.blocks = nnx.List(blocks)
        self.pooler = Pooler(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(blocks))), "pooler")})
        self.width = width

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of any size."""
        return conv.begin(batch, self.config.num_channels)


def _conv(config: Config, inputs: int, outputs: int, size: int, rngs: nnx.Rngs) -> nnx.Conv:
    init = nnx.initializers.truncated_normal(config.initializer_range)
    return Conv(inputs, outputs, (size, size), strides=(size, size), padding="VALID", kernel_init=init, rngs=rngs)


# [1, 1, 1, C] <-> [C]
_FLAT = Layout(
    "flat",
    lambda tensors: tuple(tensor.reshape(-1) for tensor in tensors),
    lambda params: tuple(param.reshape(1, 1, 1, -1) for param in params),
)


def _rules(convs, linears, normed) -> tuple[Rule, ...]:
    """Weights and biases of (name in the file, path)."""
    return (*dense(convs, CONV), *dense(linears), *norms(normed))


_BLOCK, _HF, _DOWN = "blocks/{b}", "{f}.encoder.stages.{s}.layers.{l}", "{f}.encoder.stages.{s}.downsampling_layer"
_TIMM = "stages.{s}.blocks.{l}"
SOURCES = {
    "hf": Source(
        rules=(
            *_rules(
                convs=(
                    ("{f}.embeddings.patch_embeddings", "stem/patch"),
                    (f"{_DOWN}.1", f"{_BLOCK}/down_conv"),
                    (f"{_HF}.dwconv", f"{_BLOCK}/depthwise"),
                ),
                linears=(
                    (f"{_HF}.pwconv1", f"{_BLOCK}/up"),
                    (f"{_HF}.pwconv2", f"{_BLOCK}/down"),
                    ("classifier", "head"),
                ),
                normed=(
                    ("{f}.embeddings.layernorm", "stem/norm"),
                    (f"{_DOWN}.0", f"{_BLOCK}/down_norm"),
                    (f"{_HF}.layernorm", f"{_BLOCK}/norm"),
                    ("{f}.layernorm", "pooler"),
                ),
            ),
            Rule(f"{_HF}.layer_scale_parameter", f"{_BLOCK}/layer_scale", SAME),
            Rule(f"{_HF}.grn.weight", f"{_BLOCK}/response/scale", _FLAT),
            Rule(f"{_HF}.grn.bias", f"{_BLOCK}/response/bias", _FLAT),
        ),
        prefix="convnext.",
        aliases=((r"^", "convnextv2."),),  # The same prefix for the other class.
        optional=(r"classifier\..*",),
    ),
    "timm": Source(
        rules=(
            *_rules(
                convs=(
                    ("stem.0", "stem/patch"),
                    ("stages.{s}.downsample.1", f"{_BLOCK}/down_conv"),
                    (f"{_TIMM}.conv_dw", f"{_BLOCK}/depthwise"),
                    (f"{_TIMM}.mlp.fc1", f"{_BLOCK}/expand"),
                    (f"{_TIMM}.mlp.fc2", f"{_BLOCK}/reduce"),
                ),
                linears=(
                    (f"{_TIMM}.mlp.fc1", f"{_BLOCK}/up"),  # the same tensors in the other form
                    (f"{_TIMM}.mlp.fc2", f"{_BLOCK}/down"),
                    ("head.fc", "head"),
                ),
                normed=(
                    ("stem.1", "stem/norm"),
                    ("stages.{s}.downsample.0", f"{_BLOCK}/down_norm"),
                    (f"{_TIMM}.norm", f"{_BLOCK}/norm"),
                    (f"{_TIMM}.mlp.grn", f"{_BLOCK}/response"),
                    ("head.norm", "pooler"),
                ),
            ),
            Rule(f"{_TIMM}.gamma", f"{_BLOCK}/layer_scale", SAME),
        ),
        optional=(r"head\.fc\..*",),
    ),
}
SHARDING = (
    (r"blocks/\d+/up/kernel", (None, "tensor")),
    (r"blocks/\d+/expand/kernel", (None, None, None, "tensor")),
    (r"blocks/\d+/(up|expand|response)/(bias|scale)", ("tensor",)),
    (r"blocks/\d+/down/kernel", ("tensor", None)),
    (r"blocks/\d+/reduce/kernel", (None, None, "tensor", None)),
)
