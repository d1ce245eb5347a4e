# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""ResNet8 for small images, as Keras publishes it with MLPerf Tiny (after He et al. 2015).

    config = Config.from_published({"architecture": "MLPerf Tiny ResNet8"})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images})     # float[B, 32, 32, 3], 0 to 255

Checked against a published network with its outputs and its accuracy.
"""

# B batch, H height, W width, C channels, D channels at the end

import dataclasses
from typing import Any

import jax
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.nn import conv
from tl_jax.nn.conv import ConvNorm
from tl_jax.nn.convolution import Conv
from tl_jax.nn.residual import drop_path
from tl_jax.weights.rules import KERAS, Source, batch_norms, keras, published_fields

MODEL_TYPES = ("MLPerf Tiny ResNet8",)
INPUTS = ("pixel_values",)
POOLS = ("pooler",)
HEADS = {"MLPerf Tiny ResNet8": ("classification", {})}


@dataclasses.dataclass(frozen=True)
class Config:
    """Channels of the stem and of every block; all but the first halve the image."""

    num_channels: int = 3
    image_size: int = 32
    widths: tuple[int, ...] = (16, 16, 32, 64)

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`, which describes the network in words."""
        return published_fields(cls, data)

    def indices(self) -> list[dict[str, Any]]:
        """Values of the placeholders in the key map: blocks `b`, those with a shortcut `s`, and the numbers that Keras
        gives to their convolutions (`first`, `second`, `short`) and norms (`n`, `m`)."""
        rows, number = [], 1
        for b in range(len(self.widths) - 1):
            names = {"b": b, "first": number, "second": number + 1, "n": 2 * b + 1, "m": 2 * b + 2}
            rows.append(names | ({"s": b, "short": number + 2} if b else {}))
            number += 3 if b else 2
        return [{**rows[-1], **row} for row in rows]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


def _layer(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> ConvNorm:
    form = {"padding": "SAME", "bias": True, "epsilon": 1e-3, "momentum": 0.99}
    return ConvNorm(inputs, outputs, 3, stride, **form, rngs=rngs)


class Stem(nnx.Module):
    """From pixels to the first feature map."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer = _layer(config.num_channels, config.widths[0], 1, rngs)

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> float[B, H, W, channels] in the parameters' dtype."""
        x_BHWC = x_BHWC.astype(self.layer.conv.kernel.dtype)
        return jax.nn.relu(self.layer(x_BHWC, context.mode.batch_stats))


class Block(nnx.Module):
    """Two convolutions, and what came in added; through a 1x1 convolution where its size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List([_layer(inputs, outputs, stride, rngs), _layer(outputs, outputs, 1, rngs)])
        short = {"strides": stride, "kernel_init": nnx.initializers.he_normal(), "rngs": rngs}
        self.shortcut = Conv(inputs, outputs, (1, 1), **short) if stride > 1 else None
        self.drop_path = 0.0

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, inputs] -> float[B, H / stride, W / stride, outputs]."""
        first, second = self.layers
        y_BHWC = second(jax.nn.relu(first(x_BHWC, context.mode.batch_stats)), context.mode.batch_stats)
        y_BHWC = drop_path(y_BHWC, self.drop_path, context.key)
        return jax.nn.relu(y_BHWC + (x_BHWC if self.shortcut is None else self.shortcut(x_BHWC)))


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config, self.width = config, config.widths[-1]
        self.stem = Stem(config, rngs=rngs)
        pairs = list(zip(config.widths, config.widths[1:]))
        self.blocks = nnx.List([Block(*pair, 2 if b else 1, rngs=rngs) for b, pair in enumerate(pairs)])
        self.pool = conv.Pool()
        self.chains = nnx.static({"": ("stem", *(f"blocks/{b}" for b in range(len(pairs))), "pool")})

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], of any size."""
        return conv.begin(batch, self.config.num_channels)


_FIRST, _SECOND = "blocks/{b}/layers/0", "blocks/{b}/layers/1"
SOURCES = {
    "keras": Source(
        rules=(
            *keras([("conv2d", "stem/layer/conv"), ("conv2d_{first}", f"{_FIRST}/conv")]),
            *keras([("conv2d_{second}", f"{_SECOND}/conv"), ("conv2d_{short}", "blocks/{s}/shortcut")]),
            *batch_norms([("batch_normalization", "stem/layer/norm")], KERAS),
            *batch_norms([("batch_normalization_{n}", f"{_FIRST}/norm")], KERAS),
            *batch_norms([("batch_normalization_{m}", f"{_SECOND}/norm")], KERAS),
            *keras([("dense", "head")]),
        ),
        optional=(r"dense/.*",),
    )
}
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
