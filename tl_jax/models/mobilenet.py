# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""MobileNet, version 1 (Howard et al. 2017).

    config = Config.from_published({"model_type": "mobilenet_v1", "depth_multiplier": 0.25, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images})

Checked against `transformers`' MobileNetV1Model, and against a published Keras network with its outputs.
"""

# B batch, H height, W width, C channels, D channels at the end

import dataclasses
import re
from typing import Any

from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn import conv
from tl_jax.nn.conv import ConvNorm
from tl_jax.nn.functions import activation
from tl_jax.weights.rules import (
    CONV,
    DEPTHWISE,
    KERAS,
    LINEAR,
    SAME,
    Rule,
    Source,
    batch_norms,
    keras,
    published_fields,
)

MODEL_TYPES = ("mobilenet_v1", "MobileNetV1")
INPUTS = ("pixel_values",)
POOLS = ("pooler",)
HEADS = {"MobileNetV1ForImageClassification": ("classification", {}), "MobileNetV1 ": ("classification", {})}

# Width at multiplier 1, and stride, of every block.
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, under their published names.

    Attributes:
      depth_multiplier, min_depth: of the channels of every layer, and their least number.
      tf_padding: as many zeros as the image's size asks for, more of them at the end; else as many on every side.
      layer_norm_eps: of BatchNorm.
      momentum: of the running statistics, PyTorch's 1 - momentum.
      bias: whether convolutions have one beside BatchNorm's.
    """

    num_channels: int = 3
    depth_multiplier: float = 1.0
    min_depth: int = 8
    hidden_act: str = "relu6"
    tf_padding: bool = True
    layer_norm_eps: float = 0.001
    # `transformers` gives PyTorch the decay .9997, which that takes for its opposite.
    momentum: float = 1 - 0.9997
    bias: bool = False

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`; one that describes a `MobileNetV1 0.25` in words is Keras's form."""
        named = re.match(r"MobileNetV1 ([\d.]+)", str(data.get("architecture", "")))
        if named:
            keras = {"hidden_act": "relu", "momentum": 0.99, "bias": True, "min_depth": 1}
            data = {**keras, "depth_multiplier": float(named[1]), **data}
        config = published_fields(cls, data)
        activation(config.hidden_act)
        if config.depth_multiplier <= 0:
            raise UserError("config.json", f"depth_multiplier is {config.depth_multiplier}, must be above 0")
        return config

    def width(self, channels: int) -> int:
        """What multiplier and minimum make of a layer's channels."""
        return max(int(channels * self.depth_multiplier), self.min_depth)

    def indices(self) -> list[dict[str, Any]]:
        """Values of the placeholders in the key map: `b` counts blocks, `i` convolutions of a block, `n` those of all
        blocks; `d`, `p`, `u` and `v` are the numbers that Keras gives to both convolutions and their norms."""
        return [
            {"b": b, "i": i, "n": 2 * b + i, "d": f"_{b}" if b else "", "p": b + 1, "u": 2 * b + 1, "v": 2 * b + 2}
            for b in range(len(_BLOCKS))
            for i in range(2)
        ]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


def _layer(config: Config, inputs: int, outputs: int, size: int, stride: int, groups: int, rngs: nnx.Rngs) -> ConvNorm:
    return ConvNorm(
        inputs,
        outputs,
        size,
        stride,
        groups=groups,
        padding="SAME" if config.tf_padding else None,
        bias=config.bias,
        epsilon=config.layer_norm_eps,
        momentum=config.momentum,
        rngs=rngs,
    )


class Stem(nnx.Module):
    """From pixels to the first feature map."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer, self.act = _layer(config, config.num_channels, config.width(32), 3, 2, 1, rngs), config.hidden_act

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> feature map of half the size in the parameters' dtype."""
        # Images are float32 whatever the network computes in, and the wider dtype would spread from here.
        x_BHWC = x_BHWC.astype(self.layer.conv.kernel.dtype)
        return activation(self.act)(self.layer(x_BHWC, context.mode.batch_stats))


class Block(nnx.Module):
    """A depthwise 3x3 convolution and a 1x1 one."""

    def __init__(self, config: Config, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        depthwise = _layer(config, inputs, inputs, 3, stride, inputs, rngs)
        self.layers = nnx.List([depthwise, _layer(config, inputs, outputs, 1, 1, 1, rngs)])
        self.act = config.hidden_act

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, inputs] -> float[B, H / stride, W / stride, outputs]."""
        for layer in self.layers:
            x_BHWC = activation(self.act)(layer(x_BHWC, context.mode.batch_stats))
        return x_BHWC


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        blocks, width = [], config.width(32)
        for channels, stride in _BLOCKS:
            blocks.append(Block(config, width, config.width(channels), stride, rngs=rngs))
            width = config.width(channels)
        self.blocks = nnx.List(blocks)
        self.pool = conv.Pool()
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(blocks))), "pool")})
        self.width = width

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of any size."""
        return conv.begin(batch, self.config.num_channels)


_LAYERS = (("mobilenet_v1.conv_stem", "stem/layer"), ("mobilenet_v1.layer.{n}", "blocks/{b}/layers/{i}"))
_FIRST, _DEPTH, _POINT = "stem/layer", "blocks/{b}/layers/0", "blocks/{b}/layers/1"
SOURCES = {
    "hf": Source(
        rules=(
            *(Rule(f"{name}.convolution.weight", f"{path}/conv/kernel", CONV) for name, path in _LAYERS),
            *batch_norms([(f"{name}.normalization", f"{path}/norm") for name, path in _LAYERS]),
            Rule("classifier.weight", "head/kernel", LINEAR),
            Rule("classifier.bias", "head/bias", SAME),
        ),
        prefix="mobilenet_v1.",
        ignored=(r".*\.num_batches_tracked",),
        optional=(r"classifier\..*",),
    ),
    "keras": Source(
        rules=(
            *keras([("conv2d", f"{_FIRST}/conv"), ("conv2d_{p}", f"{_POINT}/conv")]),
            *keras([("depthwise_conv2d{d}", f"{_DEPTH}/conv")], "depthwise_kernel", DEPTHWISE),
            *batch_norms([("batch_normalization", f"{_FIRST}/norm")], KERAS),
            *batch_norms([("batch_normalization_{u}", f"{_DEPTH}/norm")], KERAS),
            *batch_norms([("batch_normalization_{v}", f"{_POINT}/norm")], KERAS),
            *keras([("dense", "head")]),
        ),
        optional=(r"dense/.*",),
    ),
}
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
