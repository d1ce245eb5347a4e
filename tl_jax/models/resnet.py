# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Residual networks (He et al. 2015): the ImageNet form, and the small one for images of CIFAR's size.

    config = Config.from_published({"model_type": "resnet", "depths": [3, 4, 6, 3], ...})
    small = Config.from_published({"model_type": "resnet", "stem": "cifar", "depths": [3, 3, 3], ...})
    named = Config.from_published({"architecture": "resnet50"})
    outputs = Backbone(small, rngs=nnx.Rngs(0))({"pixel_values": images})

Checked against `transformers`' ResNetModel and `timm`, whose names are torchvision's, and against published CIFAR-10
weights with their logits.
"""

# B batch, H height, W width, C channels, D channels at the end

import dataclasses
import re
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError, did_you_mean
from tl_jax.nn import conv
from tl_jax.nn.conv import ConvNorm
from tl_jax.nn.functions import activation
from tl_jax.nn.max_pool import max_pool
from tl_jax.nn.residual import drop_path
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, batch_norms, published_fields

MODEL_TYPES = ("resnet", "CIFAR ResNet")
INPUTS = ("pixel_values",)
POOLS = ("pooler",)
HEADS = {name: ("classification", {}) for name in ("ResNetForImageClassification", "resnet", "CIFAR ResNet")}

# Networks that `timm` and torchvision name and do not describe: kind of block, depths.
_NAMED = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet26": ("bottleneck", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
# Arguments of `timm` that change the network and leave its tensors as they are.
_TIMM_ONLY = {
    "act_layer": ("relu", None),
    "aa_layer": (None,),
    "output_stride": (32,),
    "global_pool": ("avg",),
    "drop_path_rate": (0.0, None),
}
_CIFAR = {"depths": (3, 3, 3), "hidden_sizes": (16, 32, 64), "layer_type": "basic", "shortcut": "pad"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, under their published names.

    Attributes:
      embedding_size: channels after the stem.
      hidden_sizes, depths: channels and blocks of each resolution level; every level but the first halves the image.
      downsample_in_first_stage: the first level halves it too.
      downsample_in_bottleneck: in a bottleneck's first convolution instead of its second.
      hidden_act: of the stem and after each sum.
      stem: `imagenet` quarters the image by a 7x7 convolution and a maximum; `cifar` keeps its size, by a 3x3 one.
      shortcut: where the shape changes, a 1x1 convolution (`projection`) or zero channels around (`pad`, option A).
    """

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Literal["projection", "pad"] = "projection"

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`; one that says `"stem": "cifar"`, or describes a CIFAR ResNet-N in
        words, has that form's sizes where it gives none. `timm` gives a name and arguments."""
        described = re.match(r"CIFAR ResNet-(\d+)", str(data.get("architecture", "")))
        if described:
            data = {"stem": "cifar", "depths": ((int(described[1]) - 2) // 6,) * 3, **data}
        elif "architecture" in data and "model_type" not in data:
            data = _from_timm(data)
        if data.get("stem") == "cifar":
            data = {**_CIFAR, **data}
            data = {"embedding_size": data["hidden_sizes"][0], **data}
        config = published_fields(cls, data, _TIMM_ONLY)
        activation(config.hidden_act)
        if len(config.depths) != len(config.hidden_sizes) or not all(config.depths):
            found = f"depths {list(config.depths)} and hidden_sizes {list(config.hidden_sizes)}"
            raise UserError("config.json", f"{found} must be of one length, every depth at least 1")
        sizes = (config.embedding_size, *config.hidden_sizes)
        if config.shortcut == "pad" and list(sizes) != sorted(sizes):
            raise UserError("config.json", f"shortcut 'pad' cannot narrow: channels are {list(sizes)}")
        return config

    def levels(self) -> list[tuple[int, int]]:
        """(resolution level, number within it) of every block."""
        return [(level, number) for level, depth in enumerate(self.depths) for number in range(depth)]

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map: `b` counts blocks, `s` levels, `l` blocks of a level, `i`
        convolutions of a block; capital letters count from 1."""
        convs = range(2 if self.layer_type == "basic" else 3)
        return [
            {"b": b, "s": s, "l": l, "i": i, "S": s + 1, "I": i + 1}
            for b, (s, l) in enumerate(self.levels())
            for i in convs
        ]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


def _from_timm(data: dict[str, Any]) -> dict[str, Any]:
    name, given = data["architecture"], data.get("model_args", {})
    if name not in _NAMED:
        raise UserError("config.json", f"architecture {name!r} is not built{did_you_mean(name, _NAMED)}")
    layer_type, depths = _NAMED[name]
    widen = 1 if layer_type == "basic" else 4
    fields = {
        "layer_type": layer_type,
        "depths": given.get("layers", depths),
        "hidden_sizes": tuple(widen * width for width in given.get("channels", (64, 128, 256, 512))),
        "num_channels": given.get("in_chans", 3),
    }
    return {**given, **fields}


class Stem(ConvNorm):
    """From pixels to the first feature map."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        size, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        super().__init__(config.num_channels, config.embedding_size, size, stride, rngs=rngs)
        self.act, self.pool = config.hidden_act, config.stem == "imagenet"

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> feature map in the parameters' dtype."""
        # Images are float32 whatever the network computes in, and the wider dtype would spread from here.
        x_BHWC = super().__call__(x_BHWC.astype(self.conv.kernel.dtype), context.mode.batch_stats)
        x_BHWC = activation(self.act)(x_BHWC)
        return max_pool(x_BHWC, ((1, 1), (1, 1))) if self.pool else x_BHWC


class Block(nnx.Module):
    """Two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 over a quarter of the channels (bottleneck), and the shortcut."""

    def __init__(self, config: Config, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        if config.layer_type == "basic":
            sizes = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
        else:
            inner = outputs // 4
            first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
            sizes = [(inputs, inner, 1, first), (inner, inner, 3, second), (inner, outputs, 1, 1)]
        self.layers = nnx.List([ConvNorm(*size, rngs=rngs) for size in sizes])
        if config.shortcut == "projection" and (inputs != outputs or stride != 1):
            self.shortcut = ConvNorm(inputs, outputs, 1, stride, rngs=rngs)
        else:
            self.shortcut = None
        self.act, self.stride, self.widens = config.hidden_act, stride, outputs - inputs
        self.drop_path = 0.0

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, inputs] -> float[B, H / stride, W / stride, outputs]."""
        y_BHWC = x_BHWC
        for layer in self.layers[:-1]:
            # Between convolutions the published network has relu, whatever its `hidden_act`.
            y_BHWC = nnx.relu(layer(y_BHWC, context.mode.batch_stats))
        y_BHWC = drop_path(self.layers[-1](y_BHWC, context.mode.batch_stats), self.drop_path, context.key)
        if self.shortcut is not None:
            x_BHWC = self.shortcut(x_BHWC, context.mode.batch_stats)
        else:
            around = (self.widens // 2, self.widens - self.widens // 2)
            x_BHWC = jnp.pad(x_BHWC[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), around))
        return activation(self.act)(y_BHWC + x_BHWC)


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … counted over all resolution levels, and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        blocks, width = [], config.embedding_size
        for level, number in config.levels():
            halves = number == 0 and (level > 0 or config.downsample_in_first_stage)
            blocks.append(Block(config, width, config.hidden_sizes[level], 2 if halves else 1, rngs=rngs))
            width = config.hidden_sizes[level]
        self.blocks = nnx.List(blocks)
        self.pool = conv.Pool()
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(blocks))), "pool")})
        self.width = width

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of any size."""
        return conv.begin(batch, self.config.num_channels)


def _conv_norm(conv_: str, norm: str, path: str) -> tuple[Rule, ...]:
    return (Rule(f"{conv_}.weight", f"{path}/conv/kernel", CONV), *batch_norms([(norm, f"{path}/norm")]))


def _head(name: str) -> tuple[Rule, ...]:
    return (Rule(f"{name}.weight", "head/kernel", LINEAR), Rule(f"{name}.bias", "head/bias", SAME))


_HF, _STEM = "resnet.encoder.stages.{s}.layers.{l}", "resnet.embedder.embedder"
_COUNTERS = r".*\.num_batches_tracked"
SOURCES = {
    "hf": Source(
        rules=(
            *_conv_norm(f"{_STEM}.convolution", f"{_STEM}.normalization", "stem"),
            *_conv_norm(f"{_HF}.layer.{{i}}.convolution", f"{_HF}.layer.{{i}}.normalization", "blocks/{b}/layers/{i}"),
            *_conv_norm(f"{_HF}.shortcut.convolution", f"{_HF}.shortcut.normalization", "blocks/{b}/shortcut"),
            *_head("classifier.1"),
        ),
        prefix="resnet.",
        ignored=(_COUNTERS,),
        optional=(r"classifier\..*",),
    ),
    "timm": Source(
        rules=(
            *_conv_norm("conv1", "bn1", "stem"),
            *_conv_norm("layer{S}.{l}.conv{I}", "layer{S}.{l}.bn{I}", "blocks/{b}/layers/{i}"),
            *_conv_norm("layer{S}.{l}.downsample.0", "layer{S}.{l}.downsample.1", "blocks/{b}/shortcut"),
            *_head("fc"),
        ),
        ignored=(_COUNTERS,),
        optional=(r"fc\..*",),
    ),
    "akamaster": Source(  # github.com/akamaster/pytorch_resnet_cifar10, saved from a DataParallel module
        rules=(
            *_conv_norm("module.conv1", "module.bn1", "stem"),
            *_conv_norm("module.layer{S}.{l}.conv{I}", "module.layer{S}.{l}.bn{I}", "blocks/{b}/layers/{i}"),
            *_head("module.linear"),
        ),
        prefix="module.",
        ignored=(_COUNTERS,),
        optional=(r"module\.linear\..*",),
    ),
}
RESIZE = (("stem/conv/kernel", "channels", ("num_channels",)),)  # see `weights.surgery`
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
