# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DS-CNN, a keyword spotter of depthwise separable convolutions (Zhang et al. 2017), as Keras publishes it.

    config = Config.from_published({"architecture": "DS-CNN"})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_features": mfcc})     # float[B, 49, 10]

Checked against a published network with its outputs.
"""

# B batch, T frames, M coefficients, H height, W width, C channels, D width of the network

import dataclasses
from typing import Any

import jax
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.nn import conv
from tl_jax.nn.conv import ConvNorm
from tl_jax.weights.rules import DEPTHWISE, KERAS, Source, batch_norms, keras, published_fields

MODEL_TYPES = ("DS-CNN",)
INPUTS = ("input_features",)
POOLS = ("pooler",)
HEADS = {"DS-CNN ": ("classification", {})}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes; `kernel` and `stride` are those of the first convolution, over frames and coefficients."""

    width: int = 64
    num_blocks: int = 4
    kernel: tuple[int, int] = (10, 4)
    stride: int = 2

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`, which describes the network in words."""
        return published_fields(cls, data)

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map: blocks, and the numbers that Keras gives to their layers."""
        last = 4 * self.num_blocks + 2
        return [{"b": b, **{f"n{i}": 4 * b + 2 + i for i in range(4)}, "last": last} for b in range(self.num_blocks)]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


def _layer(inputs: int, width: int, size, stride: int = 1, groups: int = 1, *, rngs: nnx.Rngs) -> ConvNorm:
    form = {"padding": "SAME", "bias": True, "epsilon": 1e-3, "momentum": 0.99}
    return ConvNorm(inputs, width, size, stride, groups=groups, **form, rngs=rngs)


class Stem(nnx.Module):
    """From coefficients to the first feature map."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer = _layer(1, config.width, config.kernel, config.stride, rngs=rngs)

    def __call__(self, x_BTM, context: Context):
        """float[B, T, M] -> float[B, H, W, D] in the parameters' dtype."""
        x_BTM1 = x_BTM[..., None].astype(self.layer.conv.kernel.dtype)
        return jax.nn.relu(self.layer(x_BTM1, context.mode.batch_stats))


class Block(nnx.Module):
    """A depthwise 3x3 convolution and a 1x1 one."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List([_layer(width, width, 3, groups=width, rngs=rngs), _layer(width, width, 1, rngs=rngs)])

    def __call__(self, x_BHWD, context: Context):
        """float[B, H, W, D] -> float[B, H, W, D]."""
        for layer in self.layers:
            x_BHWD = jax.nn.relu(layer(x_BHWD, context.mode.batch_stats))
        return x_BHWD


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config, self.width = config, config.width
        self.stem = Stem(config, rngs=rngs)
        self.blocks = nnx.List([Block(config.width, rngs=rngs) for _ in range(config.num_blocks)])
        self.pool = conv.Pool()
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(config.num_blocks)), "pool")})

    def begin(self, chain, batch, done) -> Carry:
        """`input_features` float[B, T, M], of any size."""
        return Carry(batch["input_features"], {}, {})


_LAYER = "layer_with_weights-"
SOURCES = {
    "keras": Source(
        rules=(
            *keras([(f"{_LAYER}0", "stem/layer/conv"), (f"{_LAYER}{{n2}}", "blocks/{b}/layers/1/conv")]),
            *keras([(f"{_LAYER}{{n0}}", "blocks/{b}/layers/0/conv")], "depthwise_kernel", DEPTHWISE),
            *batch_norms([(f"{_LAYER}1", "stem/layer/norm")], KERAS),
            *batch_norms([(f"{_LAYER}{{n1}}", "blocks/{b}/layers/0/norm")], KERAS),
            *batch_norms([(f"{_LAYER}{{n3}}", "blocks/{b}/layers/1/norm")], KERAS),
            *keras([(f"{_LAYER}{{last}}", "head")]),
        ),
        optional=(rf"{_LAYER}18/.*",),
    )
}
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
