# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Audio Spectrogram Transformer (Gong et al. 2021): a ViT over overlapping patches of a log-mel spectrogram.

    config = Config.from_published({"model_type": "audio-spectrogram-transformer", "max_length": 1024, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"input_values": spectrograms})

Checked against `transformers`' ASTModel.
"""

# B batch, T time, M mel bands, P tokens, D width

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn.convolution import Conv
from tl_jax.nn.functions import activation, dropout
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.patches import tokens
from tl_jax.nn.prenorm import Block, Norm
from tl_jax.weights.rules import CONV, RENAMED, SAME, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("audio-spectrogram-transformer",)
INPUTS = ("input_values",)
POOLS = ("pooler", "cls", "mean")
HEADS = {"ASTForAudioClassification": ("classification", {"pool": "pooler"})}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      max_length: frames of the spectrogram.
      frequency_stride, time_stride: from one patch to the next.
      pooler: whether the norm of the published head follows the pooled feature.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    patch_size: int = 16
    qkv_bias: bool = True
    frequency_stride: int = 10
    time_stride: int = 10
    max_length: int = 1024
    num_mel_bins: int = 128
    pooler: bool = True

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        config = published_fields(cls, data)
        activation(config.hidden_act)
        if min(config.max_length, config.num_mel_bins) < config.patch_size:
            size = f"{config.max_length} frames of {config.num_mel_bins} bands"
            raise UserError("config.json", f"{size} hold no patch of side {config.patch_size}")
        return config

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"i": i} for i in range(self.num_hidden_layers)]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, pooler=pool == "pooler")


class Embeddings(nnx.Module):
    """Patches as tokens, low frequencies first, behind a class and a distillation token, plus learned positions."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.truncated_normal(config.initializer_range), config.hidden_size
        size, strides = config.patch_size, (config.frequency_stride, config.time_stride)
        self.patch = Conv(1, width, (size, size), strides=strides, padding="VALID", kernel_init=init, rngs=rngs)
        sides = zip((config.num_mel_bins, config.max_length), strides)
        rows, columns = ((side - size) // stride + 1 for side, stride in sides)
        self.cls = nnx.Param(jnp.zeros((1, 1, width)))
        self.distillation = nnx.Param(jnp.zeros((1, 1, width)))
        self.position = nnx.Param(jnp.zeros((1, 2 + rows * columns, width)))
        self.dropout = config.hidden_dropout_prob

    def __call__(self, x_BTM, context: Context):
        """float[B, T, M] -> float[B, P, D] in the parameters' dtype."""
        # Spectrograms are float32 whatever the network computes in, and the wider dtype would spread from here.
        x_BMT1 = x_BTM.swapaxes(1, 2)[..., None].astype(self.patch.kernel.dtype)
        x_BPD = tokens(self.patch(x_BMT1), self.cls[...], self.distillation[...]) + self.position[...]
        return dropout(x_BPD, self.dropout, context.key)


class Pool(nnx.Module):
    """Mean of the class and the distillation token; a stage without parameters."""

    def __call__(self, x_BPD, context: Context):
        """float[B, P, D] -> `last_hidden_state`, the same, and `pooler_output` float[B, D]."""
        return {"last_hidden_state": x_BPD, "pooler_output": (x_BPD[:, 0] + x_BPD[:, 1]) / 2}


class Pooler(LayerNorm):
    """A stage: the norm with which the published head begins."""

    def __call__(self, x, context: Context):
        """Named outputs with `pooler_output` -> the same with that normalised."""
        return {**x, "pooler_output": super().__call__(x["pooler_output"])}


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, `norm`, `pool`, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        blocks = [
            Block(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_act,
                epsilon=epsilon,
                bias=config.qkv_bias,
                dropout=config.hidden_dropout_prob,
                attention_dropout=config.attention_probs_dropout_prob,
                kernel_init=nnx.initializers.truncated_normal(config.initializer_range),
                rngs=rngs,
            )
            for _ in range(config.num_hidden_layers)
        ]
        self.blocks = nnx.List(blocks)
        self.norm, self.pool = Norm(width, epsilon=epsilon, rngs=rngs), Pool()
        names = ["stem", *(f"blocks/{i}" for i in range(len(blocks))), "norm", "pool"]
        if config.pooler:
            self.pooler = Pooler(width, epsilon=epsilon, rngs=rngs)
            names.append("pooler")
        self.chains = nnx.static({"": tuple(names)})
        self.width = width

    def begin(self, chain, batch, done) -> Carry:
        """`input_values` float[B, T, M], normalised, of the config's size.

        Raises:
          UserError: spectrograms of another size.
        """
        x_BTM, expected = batch["input_values"], (self.config.max_length, self.config.num_mel_bins)
        if x_BTM.shape[1:] != expected:
            found = f"input_values are {list(x_BTM.shape)}, this network takes [B, {expected[0]}, {expected[1]}]"
            raise UserError("batch", found, "pad or cut the spectrogram")
        return Carry(x_BTM, {}, {})


_NAME = "audio_spectrogram_transformer"
_HF, _BLOCK = f"{_NAME}.encoder.layer.{{i}}", "blocks/{i}"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.attention.query", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.attention.key", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.attention.value", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.output.dense", f"{_BLOCK}/attn/out"),
    (f"{_HF}.intermediate.dense", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.output.dense", f"{_BLOCK}/mlp/down"),
    ("classifier.dense", "head"),
)
_NORM = (
    (f"{_HF}.layernorm_before", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.layernorm_after", f"{_BLOCK}/mlp_norm"),
    (f"{_NAME}.layernorm", "norm"),
    ("classifier.layernorm", "pooler"),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule(f"{_NAME}.embeddings.cls_token", "stem/cls", SAME),
            Rule(f"{_NAME}.embeddings.distillation_token", "stem/distillation", SAME),
            Rule(f"{_NAME}.embeddings.position_embeddings", "stem/position", SAME),
            Rule(f"{_NAME}.embeddings.patch_embeddings.projection.weight", "stem/patch/kernel", CONV),
            Rule(f"{_NAME}.embeddings.patch_embeddings.projection.bias", "stem/patch/bias", SAME),
            *dense(_LINEAR),
            *norms(_NORM),
        ),
        prefix=f"{_NAME}.",
        optional=(r"classifier\..*",),
        modules=(*RENAMED, (r"\.encoder\.layer\.", ".layers.")),
    )
}
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
)
