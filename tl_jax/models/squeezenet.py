# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SqueezeNet (Iandola et al. 2016), versions 1.0 and 1.1.

    config = Config.from_published({"architecture": "squeezenet1_0"})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images})      # {"logits": …, …}

Its published classifier is a convolution whose scores are averaged over the image, which no linear head can hold: it
is the stage `pooler` of the network, and a new head takes its place. Checked against published Caffe weights with their
scores; torchvision's names are the second layout. Images are as each of the two was trained: Caffe's are BGR, 0 to 255,
less a mean.
"""

# B batch, H height, W width, C channels, D channels at the end, K published classes

import dataclasses
import re
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn import conv
from tl_jax.nn.convolution import Conv, convolve
from tl_jax.nn.max_pool import max_pool
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, dense, published_fields

MODEL_TYPES = ("squeezenet", "SqueezeNet")
INPUTS = ("pixel_values",)
POOLS = ("mean",)
HEADS = {}

# First convolution's channels and kernel, and after which blocks a maximum halves the image.
_VERSIONS = {"1.0": (96, 7, (2, 6)), "1.1": (64, 3, (1, 3))}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes.

    Attributes:
      squeeze_sizes: channels inside of every block; what it gives has eight times as many.
      num_labels: of the published classifier; 0 without it.
      classifier_padding: zeros around the map that the classifier sees, 1 in the Caffe network.
    """

    version: Literal["1.0", "1.1"] = "1.0"
    num_channels: int = 3
    squeeze_sizes: tuple[int, ...] = (16, 16, 32, 32, 48, 48, 64, 64)
    num_labels: int = 1000
    classifier_padding: int = 0

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a `config.json` that names the version as torchvision or the paper do."""
        name = str(data.get("architecture", ""))
        named = re.match(r"squeezenet(?: v)?(\d)[._](\d)", name, re.IGNORECASE)
        if named:
            data = {"version": f"{named[1]}.{named[2]}", **data}
        elif name:
            raise UserError("config.json", f"architecture {name!r} names no version, as 'squeezenet1_1' does")
        caffe = str(data.get("framework", "")).startswith("caffe")
        labels = data.get("num_classes", cls.num_labels)
        return published_fields(cls, {"classifier_padding": int(caffe), "num_labels": labels, **data})

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map: `b` counts blocks, `f` Caffe's layers, `t` torchvision's."""
        pools = _VERSIONS[self.version][2]
        return [{"b": b, "f": b + 2, "t": b + 3 + sum(p < b for p in pools)} for b in range(len(self.squeeze_sizes))]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: the published classifier."""
        return dataclasses.replace(self, num_labels=0)


def halve(x_BHWC):
    """Maximum over windows of 3, every 2, the last of which may reach over the edge."""
    over = tuple((0, 1 - size % 2) for size in x_BHWC.shape[1:3])
    return max_pool(x_BHWC, over)


class Stem(nnx.Conv):
    """From pixels to the first feature map."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, size, _ = _VERSIONS[config.version]
        form = {"strides": (2, 2), "padding": "VALID", "conv_general_dilated": convolve}
        super().__init__(config.num_channels, width, (size, size), **form, rngs=rngs)

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> feature map in the parameters' dtype."""
        # Images are float32 whatever the network computes in, and the wider dtype would spread from here.
        return halve(nnx.relu(super().__call__(x_BHWC.astype(self.kernel.dtype))))


class Block(nnx.Module):
    """`fire`: few channels by a 1x1 convolution, then a 1x1 and a 3x3 one side by side."""

    def __init__(self, inputs: int, inner: int, halves: bool, *, rngs: nnx.Rngs):
        self.squeeze = Conv(inputs, inner, (1, 1), rngs=rngs)
        self.expand_1 = Conv(inner, 4 * inner, (1, 1), rngs=rngs)
        self.expand_3 = Conv(inner, 4 * inner, (3, 3), padding=1, rngs=rngs)
        self.halves = halves

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, inputs] -> float[B, H, W, 8 * inner], or half of H and W."""
        x_BHWC = nnx.relu(self.squeeze(x_BHWC))
        x_BHWC = nnx.relu(jnp.concatenate([self.expand_1(x_BHWC), self.expand_3(x_BHWC)], axis=-1))
        return halve(x_BHWC) if self.halves else x_BHWC


class Scores(nnx.Conv):
    """The published classifier: scores of every place of the map, averaged over those above zero."""

    def __init__(self, width: int, config: Config, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.01)
        form = {"padding": config.classifier_padding, "conv_general_dilated": convolve}
        super().__init__(width, config.num_labels, (1, 1), **form, kernel_init=init, rngs=rngs)

    def __call__(self, x_BHWD, context: Context):
        """float[B, H, W, D] -> `last_hidden_state`, its mean `pooler_output` float[B, D], `logits` float32[B, K]."""
        scores_BHWK = nnx.relu(super().__call__(x_BHWD)).astype(jnp.float32)
        return {**conv.mean_pooled(x_BHWD), "logits": scores_BHWK.mean(axis=(1, 2))}


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pooler` where the config has classes."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        blocks, (width, _, pools) = [], _VERSIONS[config.version]
        for i, inner in enumerate(config.squeeze_sizes):
            blocks.append(Block(width, inner, i in pools, rngs=rngs))
            width = 8 * inner
        self.blocks = nnx.List(blocks)
        names = ["stem", *(f"blocks/{i}" for i in range(len(blocks)))]
        if config.num_labels:
            self.pooler = Scores(width, config, rngs=rngs)
            names.append("pooler")
        self.chains = nnx.static({"": tuple(names)})
        self.width = width

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of any size."""
        return conv.begin(batch, self.config.num_channels)


def _source(stem: str, squeeze: str, expand_1: str, expand_3: str, scores: str) -> Source:
    convs = (
        (stem, "stem"),
        (squeeze, "blocks/{b}/squeeze"),
        (expand_1, "blocks/{b}/expand_1"),
        (expand_3, "blocks/{b}/expand_3"),
        (scores, "pooler"),
    )
    return Source(
        rules=(
            *dense(convs, CONV),
            # A new head, which neither framework has a name for.
            Rule("head.weight", "head/kernel", LINEAR),
            Rule("head.bias", "head/bias", SAME),
        ),
        optional=(rf"{re.escape(scores)}\..*", r"head\..*"),
    )


_CAFFE, _TORCH = "fire{f}/conv", "features.{t}"
SOURCES = {
    "torchvision": _source(
        "features.0", f"{_TORCH}.squeeze", f"{_TORCH}.expand1x1", f"{_TORCH}.expand3x3", "classifier.1"
    ),
    "caffe": _source("conv1", f"{_CAFFE}1x1_1", f"{_CAFFE}1x1_2", f"{_CAFFE}3x3_2", "conv_final"),
}
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
