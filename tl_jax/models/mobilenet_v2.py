# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MobileNet, version 2 (Sandler et al. 2018).

    config = Config.from_published({"model_type": "mobilenet_v2", "depth_multiplier": 1.0, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images})

Checked against `transformers`' MobileNetV2Model.
"""

# B batch, H height, W width, C channels, D channels at the end

import dataclasses
from typing import Any

from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn import conv
from tl_jax.nn.conv import ConvNorm
from tl_jax.nn.functions import activation
from tl_jax.nn.residual import drop_path
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, batch_norms, published_fields

MODEL_TYPES = ("mobilenet_v2",)
INPUTS = ("pixel_values",)
POOLS = ("pooler",)
HEADS = {"MobileNetV2ForImageClassification": ("classification", {})}

# Width at multiplier 1, and stride, of every block.
_BLOCKS = (
    *((24, 2), (24, 1)),
    *((32, 2), (32, 1), (32, 1)),
    *((64, 2), (64, 1), (64, 1), (64, 1)),
    *((96, 1), (96, 1), (96, 1)),
    *((160, 2), (160, 1), (160, 1)),
    (320, 1),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, under their published names.

    Attributes:
      depth_multiplier, depth_divisible_by, min_depth: of the channels of every layer, what they are rounded to, and
        their least number.
      expand_ratio: of a block's inner channels to those it reads.
      finegrained_output: the last layer has its 1280 channels where the multiplier is below 1.
      tf_padding: as many zeros as the image's size asks for, more of them at the end; else as many on every side.
      layer_norm_eps: of BatchNorm.
    """

    num_channels: int = 3
    depth_multiplier: float = 1.0
    depth_divisible_by: int = 8
    min_depth: int = 8
    expand_ratio: float = 6.0
    finegrained_output: bool = True
    hidden_act: str = "relu6"
    tf_padding: bool = True
    layer_norm_eps: float = 0.001

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        config = published_fields(cls, data, {"output_stride": (32,), "first_layer_is_expansion": (True,)})
        activation(config.hidden_act)
        if config.depth_multiplier <= 0:
            raise UserError("config.json", f"depth_multiplier is {config.depth_multiplier}, must be above 0")
        return config

    def rounded(self, channels: int) -> int:
        """Channels as a multiple of the divisor, never down by more than a tenth."""
        divisor = self.depth_divisible_by
        found = max(self.min_depth, int(channels + divisor / 2) // divisor * divisor)
        return found + divisor if found < 0.9 * channels else found

    def width(self, channels: int) -> int:
        """What multiplier and rounding make of a layer's channels."""
        return self.rounded(round(channels * self.depth_multiplier))

    def last(self) -> int:
        """Channels of the last layer."""
        return 1280 if self.finegrained_output and self.depth_multiplier < 1 else self.width(1280)

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"b": b} for b in range(len(_BLOCKS))]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


def _layer(config: Config, inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1, *, rngs):
    padding = "SAME" if config.tf_padding else None
    # `transformers` gives PyTorch the decay .997, which that takes for its opposite.
    options = {"padding": padding, "epsilon": config.layer_norm_eps, "momentum": 1 - 0.997}
    return ConvNorm(inputs, outputs, size, stride, groups=groups, rngs=rngs, **options)


class Stem(nnx.Module):
    """From pixels to the first feature map: a convolution, and a depthwise one with its projection."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.width(32)
        self.first = _layer(config, config.num_channels, width, 3, 2, rngs=rngs)
        self.depthwise = _layer(config, width, width, 3, 1, width, rngs=rngs)
        self.project = _layer(config, width, config.width(16), rngs=rngs)
        self.act = config.hidden_act

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> feature map of half the size in the parameters' dtype."""
        act, stats = activation(self.act), context.mode.batch_stats
        # Images are float32 whatever the network computes in, and the wider dtype would spread from here.
        x_BHWC = act(self.first(x_BHWC.astype(self.first.conv.kernel.dtype), stats))
        return self.project(act(self.depthwise(x_BHWC, stats)), stats)


class Block(nnx.Module):
    """Expansion, depthwise 3x3 convolution, projection without activation; a sum where the shape stays."""

    def __init__(self, config: Config, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        inner = config.rounded(round(inputs * config.expand_ratio))
        self.expand = _layer(config, inputs, inner, rngs=rngs)
        self.depthwise = _layer(config, inner, inner, 3, stride, inner, rngs=rngs)
        self.project = _layer(config, inner, outputs, rngs=rngs)
        self.adds, self.act, self.drop_path = stride == 1 and inputs == outputs, config.hidden_act, 0.0

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, inputs] -> float[B, H / stride, W / stride, outputs]."""
        act, stats = activation(self.act), context.mode.batch_stats
        y_BHWC = act(self.depthwise(act(self.expand(x_BHWC, stats)), stats))
        y_BHWC = self.project(y_BHWC, stats)
        return x_BHWC + drop_path(y_BHWC, self.drop_path, context.key) if self.adds else y_BHWC


class Pool(nnx.Module):
    """The last convolution, and the mean over the image."""

    def __init__(self, config: Config, inputs: int, *, rngs: nnx.Rngs):
        self.layer, self.act = _layer(config, inputs, config.last(), rngs=rngs), config.hidden_act

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> `last_hidden_state` float[B, H, W, D] and `pooler_output` float[B, D]."""
        return conv.mean_pooled(activation(self.act)(self.layer(x_BHWC, context.mode.batch_stats)))


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        blocks, width = [], config.width(16)
        for channels, stride in _BLOCKS:
            blocks.append(Block(config, width, config.width(channels), stride, rngs=rngs))
            width = config.width(channels)
        self.blocks = nnx.List(blocks)
        self.pool = Pool(config, width, rngs=rngs)
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(blocks))), "pool")})
        self.width = config.last()

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of any size."""
        return conv.begin(batch, self.config.num_channels)


_STEM, _BLOCK = "mobilenet_v2.conv_stem", "mobilenet_v2.layer.{b}"
_LAYERS = (
    (f"{_STEM}.first_conv", "stem/first"),
    (f"{_STEM}.conv_3x3", "stem/depthwise"),
    (f"{_STEM}.reduce_1x1", "stem/project"),
    (f"{_BLOCK}.expand_1x1", "blocks/{b}/expand"),
    (f"{_BLOCK}.conv_3x3", "blocks/{b}/depthwise"),
    (f"{_BLOCK}.reduce_1x1", "blocks/{b}/project"),
    ("mobilenet_v2.conv_1x1", "pool/layer"),
)
SOURCES = {
    "hf": Source(
        rules=(
            *(Rule(f"{name}.convolution.weight", f"{path}/conv/kernel", CONV) for name, path in _LAYERS),
            *batch_norms([(f"{name}.normalization", f"{path}/norm") for name, path in _LAYERS]),
            Rule("classifier.weight", "head/kernel", LINEAR),
            Rule("classifier.bias", "head/bias", SAME),
        ),
        prefix="mobilenet_v2.",
        ignored=(r".*\.num_batches_tracked",),
        optional=(r"classifier\..*",),
    )
}
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
