# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""EfficientNet, B0 to B7 (Tan and Le 2019).

    config = Config.from_published({"model_type": "efficientnet", "width_coefficient": 1.0, ...})
    named = Config.from_published({"architecture": "tf_efficientnet_b0"})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images})

Checked against `transformers`' EfficientNetModel, and against `timm`.
"""

# B batch, H height, W width, C channels, D channels at the end

import dataclasses
import math
import re
from typing import Any, Literal, NamedTuple

from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn import conv
from tl_jax.nn.conv import ConvNorm
from tl_jax.nn.convolution import Conv
from tl_jax.nn.functions import activation
from tl_jax.nn.residual import drop_path
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, batch_norms, published_fields

MODEL_TYPES = ("efficientnet", "tf_efficientnet")
INPUTS = ("pixel_values",)
POOLS = ("pooler",)
_HEADS = ("EfficientNetForImageClassification", "efficientnet", "tf_efficientnet")
HEADS = {name: ("classification", {}) for name in _HEADS}

# Width and depth coefficients of B0 to B7.
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
# Published fields, and arguments of `timm`, that are not built.
_REFUSED = {
    "pooling_type": ("mean",),
    "act_layer": ("swish", "silu", None),
    "aa_layer": (None,),
    "global_pool": ("avg",),
    "norm_layer": (None, "batchnorm2d"),
    "output_stride": (32,),
    "se_layer": (None,),
}


class Shape(NamedTuple):
    """What tells one block from another."""

    level: int
    number: int
    inputs: int
    outputs: int
    size: int
    stride: int
    expand: int


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      width_coefficient, depth_coefficient, depth_divisor: what becomes of the lists' channels and numbers of blocks.
      depthwise_padding: blocks padded on every side alike, where `padding` is `end`.
      batch_norm_momentum: in PyTorch's sense; expansions have 0.1 whatever it is.
      drop_connect_rate: for whole examples, as the paper has it; grows from 0 at the first block.
      padding: before strides of 2: `end` leaves one zero less before the image than behind it, `same` goes by the
        image's size as TensorFlow does, `even` has as many on every side.
    """

    num_channels: int = 3
    width_coefficient: float = 2.0
    depth_coefficient: float = 3.1
    depth_divisor: int = 8
    kernel_sizes: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    in_channels: tuple[int, ...] = (32, 16, 24, 40, 80, 112, 192)
    out_channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    depthwise_padding: tuple[int, ...] = ()
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    num_block_repeats: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    expand_ratios: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    squeeze_expansion_ratio: float = 0.25
    hidden_act: str = "swish"
    hidden_dim: int = 2560
    batch_norm_eps: float = 0.001
    batch_norm_momentum: float = 0.99
    drop_connect_rate: float = 0.2
    padding: Literal["end", "same", "even"] = "end"

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`; `timm` gives a name and arguments."""
        if "architecture" in data and "model_type" not in data:
            data = _from_timm(data)
        config = published_fields(cls, data, _REFUSED)
        activation(config.hidden_act)
        lists = ("kernel_sizes", "in_channels", "out_channels", "strides", "num_block_repeats", "expand_ratios")
        counts = {name: len(getattr(config, name)) for name in lists}
        if len(set(counts.values())) > 1:
            raise UserError("config.json", f"lists must be of one length, are of {counts}")
        if config.hidden_dim != config.width(1280):
            found = f"hidden_dim is {config.hidden_dim}, 1280 channels of this width are {config.width(1280)}"
            raise UserError("config.json", found)
        return config

    def width(self, channels: int) -> int:
        """Channels scaled and rounded to the divisor, never down by more than a tenth."""
        scaled, divisor = channels * self.width_coefficient, self.depth_divisor
        rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
        return rounded + divisor if rounded < 0.9 * scaled else rounded

    def shapes(self) -> list[Shape]:
        """Of every block."""
        found = []
        for level, repeats in enumerate(self.num_block_repeats):
            inputs, outputs = self.width(self.in_channels[level]), self.width(self.out_channels[level])
            size, stride, expand = self.kernel_sizes[level], self.strides[level], self.expand_ratios[level]
            for number in range(math.ceil(self.depth_coefficient * repeats)):
                first = number == 0
                found.append(
                    Shape(level, number, inputs if first else outputs, outputs, size, stride if first else 1, expand)
                )
        return found

    def indices(self) -> list[dict[str, Any]]:
        """Values of the placeholders in the key map: `b` counts blocks, `s` levels, `l` blocks of a level; `d`, `p` and
        `q` are what `timm` calls a block's depthwise norm, its last convolution and the norm of that."""
        names = {True: ("bn2", "conv_pwl", "bn3"), False: ("bn1", "conv_pw", "bn2")}
        return [
            {"b": b, "s": shape.level, "l": shape.number, **dict(zip("dpq", names[shape.expand != 1]))}
            for b, shape in enumerate(self.shapes())
        ]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


def _from_timm(data: dict[str, Any]) -> dict[str, Any]:
    name, given = data["architecture"], data.get("model_args", {})
    named = re.fullmatch(r"(tf_)?efficientnet_b([0-7])", name)
    if not named:
        raise UserError("config.json", f"architecture {name!r} is not built", "there are B0 to B7, with tf_ or without")
    width, depth = _SCALES[int(named[2])]
    pads = {"same": "same", "": "even"}
    pad = given.get("pad_type", "same" if named[1] else "")
    if pad not in pads:
        raise UserError("config.json", f"pad_type is {pad!r}, only {list(pads)} are supported")
    scaled = Config(width_coefficient=width)
    fields = {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "hidden_dim": scaled.width(1280),
        "num_channels": given.get("in_chans", 3),
        "batch_norm_eps": given.get("bn_eps", 1e-3 if named[1] else 1e-5),
        "batch_norm_momentum": given.get("bn_momentum", 0.1),
        "drop_connect_rate": given.get("drop_path_rate", 0.0),
        "padding": pads[pad],
    }
    return {**given, **fields}


def _layer(config: Config, inputs: int, outputs: int, size: int = 1, stride: int = 1, *, rngs, **options) -> ConvNorm:
    if stride > 1 and "padding" not in options:
        half = size // 2
        options["padding"] = {"end": ((half - 1, half),) * 2, "same": "SAME", "even": half}[config.padding]
    options = {"momentum": 1 - config.batch_norm_momentum, **options}
    return ConvNorm(inputs, outputs, size, stride, epsilon=config.batch_norm_eps, rngs=rngs, **options)


class Stem(nnx.Module):
    """From pixels to the first feature map."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer = _layer(config, config.num_channels, config.width(32), 3, 2, rngs=rngs)
        self.act = config.hidden_act

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> feature map of half the size in the parameters' dtype."""
        # Images are float32 whatever the network computes in, and the wider dtype would spread from here.
        x_BHWC = x_BHWC.astype(self.layer.conv.kernel.dtype)
        return activation(self.act)(self.layer(x_BHWC, context.mode.batch_stats))


class SqueezeExcite(nnx.Module):
    """Channels weighted by what the whole image shows (Hu et al. 2017)."""

    def __init__(self, width: int, inner: int, act: str, *, rngs: nnx.Rngs):
        self.reduce = Conv(width, inner, (1, 1), rngs=rngs)
        self.expand = Conv(inner, width, (1, 1), rngs=rngs)
        self.act = act

    def __call__(self, x_BHWC):
        """float[B, H, W, C] -> the same."""
        inner_B11C = activation(self.act)(self.reduce(x_BHWC.mean(axis=(1, 2), keepdims=True)))
        return x_BHWC * nnx.sigmoid(self.expand(inner_B11C))


class Block(nnx.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection; a sum where the shape stays."""

    def __init__(self, config: Config, shape: Shape, square: bool, drop_path: float, *, rngs: nnx.Rngs):
        inner = shape.inputs * shape.expand
        expands = shape.expand != 1
        self.expand = _layer(config, shape.inputs, inner, momentum=0.9, rngs=rngs) if expands else None
        options = {"padding": shape.size // 2} if square else {}
        self.depthwise = _layer(config, inner, inner, shape.size, shape.stride, groups=inner, rngs=rngs, **options)
        squeezed = max(1, int(shape.inputs * config.squeeze_expansion_ratio))
        self.excite = SqueezeExcite(inner, squeezed, config.hidden_act, rngs=rngs)
        self.project = _layer(config, inner, shape.outputs, rngs=rngs)
        self.adds, self.act, self.drop_path = shape.number > 0, config.hidden_act, drop_path

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, inputs] -> float[B, H / stride, W / stride, outputs]."""
        act, stats, y_BHWC = activation(self.act), context.mode.batch_stats, x_BHWC
        if self.expand is not None:
            y_BHWC = act(self.expand(y_BHWC, stats))
        y_BHWC = self.excite(act(self.depthwise(y_BHWC, stats)))
        y_BHWC = self.project(y_BHWC, stats)
        if not self.adds:
            return y_BHWC
        return x_BHWC + drop_path(y_BHWC, self.drop_path, context.key)


class Pool(nnx.Module):
    """The last convolution, and the mean over the image."""

    def __init__(self, config: Config, inputs: int, *, rngs: nnx.Rngs):
        self.layer, self.act = _layer(config, inputs, config.hidden_dim, rngs=rngs), config.hidden_act

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> `last_hidden_state` float[B, H, W, D] and `pooler_output` float[B, D]."""
        return conv.mean_pooled(activation(self.act)(self.layer(x_BHWC, context.mode.batch_stats)))


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … counted over all levels, and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        shapes, square, rate = config.shapes(), config.depthwise_padding, config.drop_connect_rate
        self.blocks = nnx.List(
            [Block(config, shape, i in square, rate * i / len(shapes), rngs=rngs) for i, shape in enumerate(shapes)]
        )
        self.pool = Pool(config, shapes[-1].outputs, rngs=rngs)
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(shapes))), "pool")})
        self.width = config.hidden_dim

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of any size."""
        return conv.begin(batch, self.config.num_channels)


def _source(layers, excite: str, prefix: str = "") -> Source:
    """The key map from (convolution, norm, path) of every layer."""
    return Source(
        rules=(
            *(Rule(f"{name}.weight", f"{path}/conv/kernel", CONV) for name, _, path in layers),
            *batch_norms([(norm, f"{path}/norm") for _, norm, path in layers]),
            *(Rule(f"{excite}{part}.weight", f"blocks/{{b}}/excite/{part}/kernel", CONV) for part in _PARTS),
            *(Rule(f"{excite}{part}.bias", f"blocks/{{b}}/excite/{part}/bias", SAME) for part in _PARTS),
            Rule("classifier.weight", "head/kernel", LINEAR),
            Rule("classifier.bias", "head/bias", SAME),
        ),
        prefix=prefix,
        ignored=(r".*\.num_batches_tracked",),
        optional=(r"classifier\..*",),
    )


_PARTS = ("reduce", "expand")
_HF, _TIMM = "efficientnet.encoder.blocks.{b}", "blocks.{s}.{l}"
SOURCES = {
    "hf": _source(
        (
            ("efficientnet.embeddings.convolution", "efficientnet.embeddings.batchnorm", "stem/layer"),
            (f"{_HF}.expansion.expand_conv", f"{_HF}.expansion.expand_bn", "blocks/{b}/expand"),
            (f"{_HF}.depthwise_conv.depthwise_conv", f"{_HF}.depthwise_conv.depthwise_norm", "blocks/{b}/depthwise"),
            (f"{_HF}.projection.project_conv", f"{_HF}.projection.project_bn", "blocks/{b}/project"),
            ("efficientnet.encoder.top_conv", "efficientnet.encoder.top_bn", "pool/layer"),
        ),
        f"{_HF}.squeeze_excite.",
        prefix="efficientnet.",
    ),
    "timm": _source(
        (
            ("conv_stem", "bn1", "stem/layer"),
            (f"{_TIMM}.conv_pw", f"{_TIMM}.bn1", "blocks/{b}/expand"),
            (f"{_TIMM}.conv_dw", f"{_TIMM}.{{d}}", "blocks/{b}/depthwise"),
            (f"{_TIMM}.{{p}}", f"{_TIMM}.{{q}}", "blocks/{b}/project"),
            ("conv_head", "bn2", "pool/layer"),
        ),
        f"{_TIMM}.se.conv_",
    ),
}
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
