# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whisper (Radford et al. 2022): an encoder of log-mel spectrograms and a decoder of text.

    config = Config.from_published({"model_type": "whisper", "d_model": 384, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"input_features": features, "decoder_input_ids": ids})    # the decoder's hidden states
    encoder = Backbone(config.without("mean"), rngs=nnx.Rngs(0))               # for a head: no decoder

Pre-norm transformers, checked against `transformers`' WhisperModel and WhisperForAudioClassification.
"""

# B batch, T time, S time of what is attended to, M mel bands, D width

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn.attention import attend, heads
from tl_jax.nn.convolution import Conv
from tl_jax.nn.embed import Embed
from tl_jax.nn.functions import activation, dropout, keys
from tl_jax.nn.linear import Linear
from tl_jax.nn.memory import once
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.residual import drop_path
from tl_jax.nn.waves import Projector
from tl_jax.nn.words import Words
from tl_jax.weights.rules import LINEAR, SAME, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("whisper",)
INPUTS = ("input_features", "decoder_input_ids", "decoder_attention_mask")
POOLS = ("mean", "pooler")
HEADS = {
    "WhisperForConditionalGeneration": ("language_model", {}),
    "WhisperForAudioClassification": ("classification", {"pool": "pooler"}),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      decoder: whether it is built.
      tie_word_embeddings: whether the layer that predicts words is the decoder's embedding once more.
      pooler: whether the projector of the published head for classes follows the encoder.
      lm_head: whether the layer that predicts words follows the decoder.
    """

    vocab_size: int = 51865
    num_mel_bins: int = 80
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    decoder_layers: int = 4
    decoder_attention_heads: int = 6
    decoder_ffn_dim: int = 1536
    activation_function: str = "gelu"
    d_model: int = 384
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    max_source_positions: int = 1500
    max_target_positions: int = 448
    classifier_proj_size: int = 256
    tie_word_embeddings: bool = True
    decoder: bool = True
    pooler: bool = False
    lm_head: bool = False

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        no = ("scale_embedding", "use_weighted_layer_sum", "apply_spec_augment")
        refused = {**dict.fromkeys(no, (False, None)), "encoder_layerdrop": (0.0,), "decoder_layerdrop": (0.0,)}
        config = published_fields(cls, data, refused)
        activation(config.activation_function)
        return config

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map: `e` and `d` count the blocks of encoder and decoder, `b` those of
        the decoder from the encoder's first."""
        encoder, decoder = self.encoder_layers, self.decoder_layers
        pairs = [(min(n, encoder - 1), min(n, decoder - 1)) for n in range(max(encoder, decoder))]
        return [{"e": e, "d": d, "b": encoder + d} for e, d in pairs]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: heads for classes read the encoder alone."""
        kept = {"decoder": pool in ("", "lm_head"), "pooler": pool == "pooler", "lm_head": pool == "lm_head"}
        return dataclasses.replace(self, **kept)


class Stem(nnx.Module):
    """Two convolutions over time, the second of stride 2, and fixed positions."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.init_std), config.d_model

        def conv(inputs, stride):
            return Conv(inputs, width, (3,), strides=(stride,), padding=((1, 1),), kernel_init=init, rngs=rngs)

        self.convs = nnx.List([conv(config.num_mel_bins, 1), conv(width, 2)])
        self.position = nnx.Param(jnp.asarray(sinusoids(config.max_source_positions, width)))
        self.dropout = config.dropout

    def __call__(self, x_BTM, context: Context):
        """float[B, 2 T, M] -> float[B, T, D] in the parameters' dtype."""
        # Features are float32 whatever the network computes in, and the wider dtype would spread from here.
        x_BTD = x_BTM.astype(self.convs[0].kernel.dtype)
        for conv in self.convs:
            x_BTD = activation("gelu")(conv(x_BTD))
        # Published with the weights, but never trained.
        return dropout(x_BTD + jax.lax.stop_gradient(self.position[...]), self.dropout, context.key)


class Embeddings(nnx.Module):
    """Sum of word and learned position embeddings."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.init_std)
        self.word = Embed(config.vocab_size, config.d_model, embedding_init=init, rngs=rngs)
        self.position = Embed(config.max_target_positions, config.d_model, embedding_init=init, rngs=rngs)
        self.dropout = config.dropout

    def __call__(self, ids_BT, context: Context):
        """int[B, T] -> float[B, T, D]."""
        places = jnp.arange(ids_BT.shape[1]) if context.memory is None else context.memory.places_BT
        return dropout(self.word(ids_BT) + self.position(places), self.dropout, context.key)


class Attention(nnx.Module):
    """Multi-head attention to oneself or to another sequence; keys have no bias."""

    def __init__(self, width: int, num_heads: int, config: Config, *, causal: bool = False, rngs: nnx.Rngs):
        def linear(use_bias=True):
            init = nnx.initializers.normal(config.init_std)
            return Linear(width, width, use_bias=use_bias, kernel_init=init, rngs=rngs)

        self.query, self.key, self.value, self.out = linear(), linear(use_bias=False), linear(), linear()
        self.num_heads, self.causal, self.dropout = num_heads, causal, config.attention_dropout

    def __call__(self, x_BTD, source_BSD, mask_BS=None, key=None, memory=None):
        """float[B, T, D] -> float[B, T, D], from `source_BSD`, of which `mask_BS` may hide positions by 0. A `memory`
        keeps what has been read of a sequence that grows, and all of one that does not."""

        def pairs():
            return heads(self.key(source_BSD), self.num_heads), heads(self.value(source_BSD), self.num_heads)

        q_BTNH = heads(self.query(x_BTD), self.num_heads)
        k_BSNH, v_BSNH = pairs() if self.causal else once(memory, pairs)
        grows = memory if self.causal else None
        y_BTNH = attend(q_BTNH, k_BSNH, v_BSNH, mask_BS, causal=self.causal, rate=self.dropout, key=key, memory=grows)
        return self.out(y_BTNH.reshape(x_BTD.shape))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm; a decoder's is causal, and attends to the encoder's output between."""

    def __init__(self, config: Config, num_heads: int, hidden: int, *, decoder: bool, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.init_std), config.d_model

        def norm():
            return LayerNorm(width, epsilon=1e-5, rngs=rngs)

        self.attn_norm, self.mlp_norm = norm(), norm()
        self.attn = Attention(width, num_heads, config, causal=decoder, rngs=rngs)
        self.cross = Attention(width, num_heads, config, rngs=rngs) if decoder else None
        self.cross_norm = norm() if decoder else None
        self.mlp = MLP(width, hidden, config.activation_function, kernel_init=init, rngs=rngs)
        self.dropout, self.inner_dropout, self.drop_path = config.dropout, config.activation_dropout, 0.0

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        in_attn, after_attn, in_cross, after_cross, in_mlp, after_mlp, *drops = keys(context.key, 9)
        y_BTD = self.attn_norm(x_BTD)
        y_BTD = self.attn(y_BTD, y_BTD, context.batch.get("decoder_attention_mask"), in_attn, context.memory)
        x_BTD = x_BTD + drop_path(dropout(y_BTD, self.dropout, after_attn), self.drop_path, drops[0])
        if self.cross is not None:
            y_BTD = self.cross(self.cross_norm(x_BTD), context.batch["source"], None, in_cross, context.memory)
            x_BTD = x_BTD + drop_path(dropout(y_BTD, self.dropout, after_cross), self.drop_path, drops[1])
        y_BTD = activation(self.mlp.act)(self.mlp.up(self.mlp_norm(x_BTD)))
        y_BTD = self.mlp.down(dropout(y_BTD, self.inner_dropout, in_mlp))
        return x_BTD + drop_path(dropout(y_BTD, self.dropout, after_mlp), self.drop_path, drops[2])


class Norm(LayerNorm):
    """The norm after the last block, as a stage."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        return super().__call__(x_BTD)


class Backbone(chain.Backbone):
    """Chains `encoder` (`stem`, `blocks/0` …, `norm`, and `pooler` where the config has one) and, where the config has
    it, `decoder` (`decoder_stem`, further `blocks`, `decoder_norm`, and `lm_head` where the config has one), whose
    hidden states are then the output."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.d_model
        self.config = config
        sizes = [(config.encoder_attention_heads, config.encoder_ffn_dim, False)] * config.encoder_layers
        if config.decoder:
            sizes += [(config.decoder_attention_heads, config.decoder_ffn_dim, True)] * config.decoder_layers
        self.blocks = nnx.List([Block(config, n, hidden, decoder=late, rngs=rngs) for n, hidden, late in sizes])
        blocks = [f"blocks/{i}" for i in range(len(sizes))]
        self.stem, self.norm = Stem(config, rngs=rngs), Norm(width, epsilon=1e-5, rngs=rngs)
        chains = {"encoder": ("stem", *blocks[: config.encoder_layers], "norm")}
        if config.decoder:
            self.decoder_stem = Embeddings(config, rngs=rngs)
            self.decoder_norm = Norm(width, epsilon=1e-5, rngs=rngs)
            chains["decoder"] = ("decoder_stem", *blocks[config.encoder_layers :], "decoder_norm")
            self.reads = nnx.static({"decoder": ("encoder",)})
        elif config.pooler:
            init, width = nnx.initializers.normal(config.init_std), config.classifier_proj_size
            self.pooler = Projector(config.d_model, width, kernel_init=init, rngs=rngs)
            chains["encoder"] += ("pooler",)
        self.chains, self.width = nnx.static(chains), width
        if config.lm_head:
            tied = "decoder_stem/word/embedding" if config.tie_word_embeddings else None
            init = nnx.initializers.normal(config.init_std)
            self.add_stage("lm_head", Words(width, config.vocab_size, tied=tied, kernel_init=init, rngs=rngs))

    def begin(self, chain, batch, done) -> Carry:
        """`input_features` float[B, 2 `max_source_positions`, M] for the encoder; for the decoder `decoder_input_ids`
        int[B, T], of which `decoder_attention_mask` int[B, T] (default: all ones) may hide positions.

        Raises:
          UserError: features of another size, no ids, or more than there are positions.
        """
        if chain == "encoder":
            x_BTM = batch["input_features"]
            expected = (2 * self.config.max_source_positions, self.config.num_mel_bins)
            if x_BTM.shape[1:] != expected:
                text = f"input_features are {list(x_BTM.shape)}, this network takes [B, {expected[0]}, {expected[1]}]"
                raise UserError("batch", text, "pad or cut the sound, and put the mel bands last")
            return Carry(x_BTM, {}, {})
        if "decoder_input_ids" not in batch:
            raise UserError("batch", "has no decoder_input_ids, which the decoder reads")
        ids_BT, limit = batch["decoder_input_ids"], self.config.max_target_positions
        if ids_BT.shape[1] > limit:
            raise UserError(
                "decoder_input_ids", f"has {ids_BT.shape[1]} tokens, there are {limit} positions", "cut them"
            )
        mask_BT = batch.get("decoder_attention_mask")
        mask_BT = jnp.ones_like(ids_BT) if mask_BT is None else mask_BT
        return Carry(ids_BT, {"decoder_attention_mask": mask_BT, "source": done["encoder"]}, {})


def sinusoids(length: int, width: int) -> np.ndarray:
    """float32[length, width]: sines, then cosines, of wavelengths from 2 pi to 10000 times that."""
    rates = np.exp(-np.log(10000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


# `LINEAR` turns all axes around, which is also what a convolution over time needs: [out, in, K] <-> [K, in, out].
_ENCODER, _DECODER = "encoder.layers.{e}", "decoder.layers.{d}"
_ATTENTION = (
    (f"{_ENCODER}.self_attn", "blocks/{e}/attn"),
    (f"{_DECODER}.self_attn", "blocks/{b}/attn"),
    (f"{_DECODER}.encoder_attn", "blocks/{b}/cross"),
)
_BLOCKS = ((_ENCODER, "blocks/{e}"), (_DECODER, "blocks/{b}"))
_LINEAR = (  # (name in the file, path), for weight and bias alike
    ("encoder.conv1", "stem/convs/0"),
    ("encoder.conv2", "stem/convs/1"),
    *((f"{name}.{theirs}_proj", f"{path}/{ours}") for name, path in _ATTENTION
      for theirs, ours in (("q", "query"), ("v", "value"), ("out", "out"))),
    *((f"{name}.{theirs}", f"{path}/mlp/{ours}") for name, path in _BLOCKS
      for theirs, ours in (("fc1", "up"), ("fc2", "down"))),
    ("projector", "pooler"),
    ("classifier", "head"),
)  # fmt: skip
_NORM = (
    ("encoder.layer_norm", "norm"),
    ("decoder.layer_norm", "decoder_norm"),
    *((f"{name}_layer_norm", f"{path}_norm") for name, path in _ATTENTION),
    *((f"{name}.final_layer_norm", f"{path}/mlp_norm") for name, path in _BLOCKS),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule("encoder.embed_positions.weight", "stem/position", SAME),
            Rule("decoder.embed_tokens.weight", "decoder_stem/word/embedding", SAME),
            Rule("decoder.embed_positions.weight", "decoder_stem/position/embedding", SAME),
            *(Rule(f"{name}.k_proj.weight", f"{path}/key/kernel", LINEAR) for name, path in _ATTENTION),
            *dense(_LINEAR),
            *norms(_NORM),
            Rule("proj_out.weight", "lm_head/kernel", LINEAR),
        ),
        # Files of the network that writes text; the one with a head for classes has no such prefix.
        aliases=((r"^model\.", ""),),
        # The layer that predicts words is mostly the embedding once more.
        ignored=(r"proj_out\..*",),
        optional=(r"decoder\..*", r"(projector|classifier)\..*"),
    )
}
SHARDING = (
    (r"blocks/\d+/((attn|cross)/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/((attn|cross)/(query|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/((attn|cross)/out|mlp/down)/kernel", ("tensor", None)),
    (r"decoder_stem/word/embedding", ("tensor", None)),
    (r"lm_head/kernel", (None, "tensor")),
)
