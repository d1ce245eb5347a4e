# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer (Liu et al. 2021): attention within windows, which every second block shifts.

    config = Config.from_published({"model_type": "swin", "depths": [2, 2, 6, 2], ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"pixel_values": images})

Checked against `transformers`' SwinModel. Takes images of any size whose smallest feature map holds a window.
"""

# B batch, H height, W width, C channels, D width of tokens, N windows of an image, S tokens of a window, K heads

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn import conv
from tl_jax.nn.attention import attend, heads
from tl_jax.nn.embed import Embed
from tl_jax.nn.functions import activation, dropout, keys
from tl_jax.nn.linear import Linear
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.patches import Patches
from tl_jax.nn.residual import drop_path
from tl_jax.weights.rules import CONV, LINEAR, RENAMED, SAME, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("swin",)
INPUTS = ("pixel_values",)
POOLS = ("pooler",)
HEADS = {"SwinForImageClassification": ("classification", {})}

_EPSILON = 1e-5  # Of the norms that the published `layer_norm_eps` does not reach.


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      embed_dim: width of the first resolution level; every further one halves the image and doubles it.
      depths, num_heads: blocks and attention heads of each level.
      drop_path_rate: of the last block; it grows from 0 at the first.
    """

    image_size: int = 224
    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        config = published_fields(cls, data, {"use_absolute_embeddings": (False, None)})
        activation(config.hidden_act)
        if len(config.depths) != len(config.num_heads) or not all(config.depths):
            found = f"depths {list(config.depths)} and num_heads {list(config.num_heads)}"
            raise UserError("config.json", f"{found} must be of one length, every depth at least 1")
        return config

    def levels(self) -> list[tuple[int, int]]:
        """(resolution level, number within it) of every block."""
        return [(level, number) for level, depth in enumerate(self.depths) for number in range(depth)]

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map: `b` counts blocks, `s` levels, `l` blocks of a level; `n` is the
        first block of the next level."""
        ends = np.cumsum(self.depths)
        return [{"b": b, "s": s, "l": l, "n": int(ends[s])} for b, (s, l) in enumerate(self.levels())]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


class Embeddings(nnx.Module):
    """Normalised patches."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initializer_range)
        self.patch = Patches(config.num_channels, config.embed_dim, config.patch_size, kernel_init=init, rngs=rngs)
        self.norm = LayerNorm(config.embed_dim, epsilon=_EPSILON, rngs=rngs)
        self.size, self.dropout = config.patch_size, config.hidden_dropout_prob

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> float[B, H / size, W / size, D] in the parameters' dtype, rounded up."""
        x_BHWD = self.norm(self.patch(padded(x_BHWC, self.size)))
        return dropout(x_BHWD, self.dropout, context.key)


class WindowAttention(nnx.Module):
    """Self-attention within square windows, with a learned bias for every relative position."""

    def __init__(self, config: Config, width: int, num_heads: int, shift: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initializer_range)

        def linear(bias=True):
            return Linear(width, width, use_bias=bias, kernel_init=init, rngs=rngs)

        self.query, self.key, self.value = (linear(config.qkv_bias) for _ in range(3))
        self.out = linear()
        count = (2 * config.window_size - 1) ** 2
        self.position = Embed(count, num_heads, embedding_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.window, self.shift, self.num_heads = config.window_size, shift, num_heads
        self.dropout = config.attention_probs_dropout_prob

    def __call__(self, x_BHWD, key=None):
        """float[B, H, W, D] -> float[B, H, W, D]."""
        batch, height, width, _ = x_BHWD.shape
        window, shift = self.window, self.shift
        if min(height, width) <= window:
            shift = 0  # A single window sees all.
        x_BHWD = padded(x_BHWD, window)
        shape = x_BHWD.shape
        x_ASD = windows(jnp.roll(x_BHWD, (-shift, -shift), axis=(1, 2)), window)
        bias_AKSS = self.position(jnp.asarray(relative(window))).transpose(2, 0, 1)[None]
        if shift:
            # Rolling brings the image's ends together; they do not see each other.
            region_NS = windows(regions(*shape[1:3], window, shift)[None, :, :, None], window)[..., 0]
            apart_NSS = region_NS[:, :, None] != region_NS[:, None, :]
            bias_NKSS = jnp.where(apart_NSS[:, None], jnp.asarray(-100.0, bias_AKSS.dtype), bias_AKSS)
            bias_AKSS = jnp.broadcast_to(bias_NKSS, (batch, *bias_NKSS.shape)).reshape(-1, *bias_NKSS.shape[1:])
        q_ASKH, k_ASKH, v_ASKH = (heads(f(x_ASD), self.num_heads) for f in (self.query, self.key, self.value))
        y_ASKH = attend(q_ASKH, k_ASKH, v_ASKH, bias=bias_AKSS, rate=self.dropout, key=key)
        y_BHWD = joined(self.out(y_ASKH.reshape(x_ASD.shape)), shape, window)
        return jnp.roll(y_BHWD, (shift, shift), axis=(1, 2))[:, :height, :width]


class Merge(nnx.Module):
    """Four neighbours into one token of twice the width."""

    def __init__(self, config: Config, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initializer_range)
        self.norm = LayerNorm(4 * width, epsilon=_EPSILON, rngs=rngs)
        self.reduction = Linear(4 * width, 2 * width, use_bias=False, kernel_init=init, rngs=rngs)

    def __call__(self, x_BHWD):
        """float[B, H, W, D] -> float[B, H / 2, W / 2, 2 D], rounded up."""
        x_BHWD = padded(x_BHWD, 2)
        parts = [x_BHWD[:, row::2, column::2] for column in range(2) for row in range(2)]
        return self.reduction(self.norm(jnp.concatenate(parts, axis=-1)))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and followed by a residual sum; the first of a level merges before."""

    def __init__(self, config: Config, level: int, shift: int, merges: bool, rate: float, *, rngs: nnx.Rngs):
        width = config.embed_dim * 2**level
        init = nnx.initializers.truncated_normal(config.initializer_range)
        self.attn_norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.attn = WindowAttention(config, width, config.num_heads[level], shift, rngs=rngs)
        self.mlp_norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.mlp = MLP(width, int(config.mlp_ratio * width), config.hidden_act, kernel_init=init, rngs=rngs)
        self.merge = Merge(config, width // 2, rngs=rngs) if merges else None
        self.dropout, self.drop_path = config.hidden_dropout_prob, rate

    def __call__(self, x_BHWD, context: Context):
        """float[B, H, W, D] -> float[B, H, W, D], or float[B, H / 2, W / 2, 2 D]."""
        if self.merge is not None:
            x_BHWD = self.merge(x_BHWD)
        in_attn, after_attn, drop_attn, after_mlp, drop_mlp = keys(context.key, 5)
        y_BHWD = dropout(self.attn(self.attn_norm(x_BHWD), in_attn), self.dropout, after_attn)
        x_BHWD = x_BHWD + drop_path(y_BHWD, self.drop_path, drop_attn)
        y_BHWD = dropout(self.mlp(self.mlp_norm(x_BHWD)), self.dropout, after_mlp)
        return x_BHWD + drop_path(y_BHWD, self.drop_path, drop_mlp)


class Norm(LayerNorm):
    """The norm after the last block, as a stage."""

    def __call__(self, x_BHWD, context: Context):
        """float[B, H, W, D] -> float[B, H, W, D]."""
        return super().__call__(x_BHWD)


class Pool(nnx.Module):
    """Mean over the image; a stage without parameters."""

    def __call__(self, x_BHWD, context: Context):
        """float[B, H, W, D] -> `last_hidden_state` float[B, H * W, D] and `pooler_output` float[B, D]."""
        outputs = conv.mean_pooled(x_BHWD)
        return {**outputs, "last_hidden_state": x_BHWD.reshape(x_BHWD.shape[0], -1, x_BHWD.shape[-1])}


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … counted over all resolution levels, `norm` and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        blocks, levels = [], config.levels()
        for i, (level, number) in enumerate(levels):
            rate = config.drop_path_rate * i / max(len(levels) - 1, 1)
            shift = number % 2 * (config.window_size // 2)
            blocks.append(Block(config, level, shift, level > 0 and number == 0, rate, rngs=rngs))
        self.blocks = nnx.List(blocks)
        self.width = config.embed_dim * 2 ** (len(config.depths) - 1)
        self.norm = Norm(self.width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.pool = Pool()
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(blocks))), "norm", "pool")})

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised.

        Raises:
          UserError: another number of channels, or images too small for a window.
        """
        carry, config = conv.begin(batch, self.config.num_channels), self.config
        side = config.patch_size * 2 ** (len(config.depths) - 1)
        if min(carry.x.shape[1:3]) <= side * (config.window_size - 1):
            found = f"pixel_values are {list(carry.x.shape)}, less than a window of {config.window_size} in the end"
            raise UserError("batch", found, f"give images of {side * config.window_size} pixels or more")
        return carry


def padded(x_BHWD, multiple: int):
    """Zeros below and on the right, up to a multiple in height and width."""
    below, right = (-size % multiple for size in x_BHWD.shape[1:3])
    return jnp.pad(x_BHWD, ((0, 0), (0, below), (0, right), (0, 0)))


def windows(x_BHWD, size: int):
    """[B, H, W, D] -> [B * N, size², D], windows in rows."""
    batch, height, width, depth = x_BHWD.shape
    x = x_BHWD.reshape(batch, height // size, size, width // size, size, depth).swapaxes(2, 3)
    return x.reshape(-1, size * size, depth)


def joined(x_ASD, shape: tuple[int, ...], size: int):
    """The inverse of `windows`."""
    batch, height, width, depth = shape
    x = x_ASD.reshape(batch, height // size, width // size, size, size, depth).swapaxes(2, 3)
    return x.reshape(shape)


def relative(size: int) -> np.ndarray:
    """int[size², size²]: the row of the bias table for a token of a window and one that it attends to."""
    row, column = np.divmod(np.arange(size * size), size)
    down, right = row[:, None] - row + size - 1, column[:, None] - column + size - 1
    return down * (2 * size - 1) + right


def regions(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """int[height, width]: which tokens lay side by side before the image was rolled by `shift`."""

    def parts(size):
        return (np.arange(size) >= size - window).astype(int) + (np.arange(size) >= size - shift)

    return parts(height)[:, None] * 3 + parts(width)


_HF, _BLOCK, _MERGE = "swin.encoder.layers.{s}.blocks.{l}", "blocks/{b}", "swin.encoder.layers.{s}.downsample"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.self.query", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.self.key", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.self.value", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.output.dense", f"{_BLOCK}/attn/out"),
    (f"{_HF}.intermediate.dense", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.output.dense", f"{_BLOCK}/mlp/down"),
    ("classifier", "head"),
)
_NORM = (
    ("swin.embeddings.norm", "stem/norm"),
    (f"{_HF}.layernorm_before", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.layernorm_after", f"{_BLOCK}/mlp_norm"),
    (f"{_MERGE}.norm", "blocks/{n}/merge/norm"),
    ("swin.layernorm", "norm"),
)
_TABLE = "attention.self.relative_position_bias_table"
SOURCES = {
    "hf": Source(
        rules=(
            Rule("swin.embeddings.patch_embeddings.projection.weight", "stem/patch/kernel", CONV),
            Rule("swin.embeddings.patch_embeddings.projection.bias", "stem/patch/bias", SAME),
            Rule(f"{_HF}.{_TABLE}", f"{_BLOCK}/attn/position/embedding", SAME),
            Rule(f"{_MERGE}.reduction.weight", "blocks/{n}/merge/reduction/kernel", LINEAR),
            *dense(_LINEAR),
            *norms(_NORM),
        ),
        prefix="swin.",
        ignored=(r".*\.relative_position_index", r"swin\.embeddings\.mask_token", r"decoder\..*"),
        optional=(r"classifier\..*",),
        modules=RENAMED,
    )
}
RESIZE = (  # (path, how, published fields that ask for it); see `weights.surgery`
    ("stem/patch/kernel", "patch", ("patch_size",)),
    ("stem/patch/kernel", "channels", ("num_channels",)),
)
NO_DECAY = (r"blocks/\d+/attn/position/embedding",)
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
)
