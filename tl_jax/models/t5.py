# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""T5, T5 v1.1 and Flan-T5, an encoder and a decoder (Raffel et al. 2019).

    config = Config.from_published({"model_type": "t5", "d_model": 512, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_ids": ids, "decoder_input_ids": read_so_far})

Two chains of pre-norm blocks without biases, with learned biases by relative position; checked against `transformers`'
T5Model. Without `decoder_input_ids` the decoder reads the text itself, one token late, as in the published classifier.
"""

# B batch, T queries, S keys, D width, N heads, H width of a head, R relative positions

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.nn.attention import attend, heads
from tl_jax.nn.embed import Embed
from tl_jax.nn.functions import activation, dropout, keys
from tl_jax.nn.gated import GatedMLP, RMSNorm
from tl_jax.nn.linear import Linear
from tl_jax.nn.memory import Recall, once
from tl_jax.nn.residual import drop_path
from tl_jax.nn.words import Words
from tl_jax.weights.rules import LINEAR, SAME, Rule, Source, published_fields

MODEL_TYPES = ("t5",)
INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
POOLS = ("pooler", "last", "mean")
HEADS = {
    "T5ForConditionalGeneration": ("language_model", {}),
    "T5ForSequenceClassification": ("classification", {"pool": "pooler"}),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      num_decoder_layers: as many as `num_layers` where None.
      feed_forward_proj: the activation's name, behind `gated-` where the MLP is gated; `gated-gelu` is the tanh form.
      decoder_start_token_id: what the decoder reads first.
      tie_word_embeddings, scale_decoder_outputs: both, where the layer that predicts words is the embedding once more;
        older files have the first alone.
      pooler: whether the first layer of a head for classes is built; `lm_head`, whether the one that predicts words.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    decoder_start_token_id: int | None = 0
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    pooler: bool = True
    lm_head: bool = False

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        config = published_fields(cls, data, {"is_encoder_decoder": (True, None)})
        activation(config.mlp[1])
        return config

    def indices(self) -> list[dict[str, int | str]]:
        """Values of the placeholders in the key map: `e` and `d` count the blocks of encoder and decoder, `b` gives the
        latter's place in the whole network, `up` is a layer that has another name where there is a gate."""
        up, encoder, decoder = "wi_1" if self.mlp[0] else "wi", *self.chains().values()
        return [{"e": e, "d": b - len(encoder), "b": b, "up": up} for e in encoder for b in decoder]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, pooler=pool == "pooler", lm_head=pool == "lm_head")

    @property
    def mlp(self) -> tuple[bool, str]:
        """Whether the MLP is gated, and its activation."""
        gated, act = "-" in self.feed_forward_proj, self.feed_forward_proj.split("-")[-1]
        return gated, "gelu_new" if gated and act == "gelu" else act

    def chains(self) -> dict[str, range]:
        """The blocks of each chain, counted over the network."""
        last = self.num_layers + (self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers)
        return {"encoder": range(self.num_layers), "decoder": range(self.num_layers, last)}


class Embeddings(nnx.Module):
    """Word embeddings, those of the encoder for both."""

    def __init__(self, config: Config, tied: dict[str, str], *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_factor)
        self.word = Embed(config.vocab_size, config.d_model, embedding_init=init, rngs=rngs)
        self.dropout, self.tied = config.dropout_rate, nnx.static(tied)

    def __call__(self, ids_BT: jax.Array, context: Context):
        """int[B, T] -> float[B, T, D]."""
        return dropout(self.word(ids_BT), self.dropout, context.key)


class Attention(nnx.Module):
    """Attention without biases and without the usual scale, which the initial queries have."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, inner, factor = config.d_model, config.num_heads * config.d_kv, config.initializer_factor

        def linear(inputs, outputs, size):
            init = nnx.initializers.normal(factor * size**-0.5)
            return Linear(inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs)

        self.query = linear(width, inner, width * config.d_kv)
        self.key, self.value = linear(width, inner, width), linear(width, inner, width)
        self.out = linear(inner, width, inner)
        self.num_heads, self.rate = config.num_heads, config.dropout_rate

    def __call__(self, x_BTD, y_BSD, mask_BS, key, bias=None, causal=False, memory=None):
        """float[B, T, D] from queries of `x_BTD` and keys of `y_BSD`; `bias` float[1 or B, N, T, S]. A `memory` keeps
        what has been read of a sequence that grows, which is `causal`, and all of one that does not."""

        def pairs():
            return heads(self.key(y_BSD), self.num_heads), heads(self.value(y_BSD), self.num_heads)

        q_BTNH = heads(self.query(x_BTD), self.num_heads)
        k_BSNH, v_BSNH = pairs() if causal else once(memory, pairs)
        options = {"bias": bias, "causal": causal, "scale": 1.0, "rate": self.rate, "key": key}
        found_BTNH = attend(q_BTNH, k_BSNH, v_BSNH, mask_BS, memory=memory if causal else None, **options)
        return self.out(found_BTNH.reshape(*x_BTD.shape[:2], -1))


class RelativeBias(Embed):
    """A number for each head and bucket of relative positions, which attention scores are raised by."""

    def __init__(self, config: Config, both_ways: bool, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_factor * config.d_model**-0.5)
        count = config.relative_attention_num_buckets
        super().__init__(count, config.num_heads, embedding_init=init, rngs=rngs)
        self.farthest, self.both_ways = config.relative_attention_max_distance, both_ways

    def __call__(self, length: int, memory: Recall | None):
        """float[1, N, length, length], or float[B, N, T, L] for the tokens and the columns of a memory."""
        if memory is None:
            ahead_BTS = (jnp.arange(length) - jnp.arange(length)[:, None])[None]
        else:
            ahead_BTS = memory.ahead()
            length = ahead_BTS.shape[-1]
        places_R = buckets(np.arange(1 - length, length), self.both_ways, self.num_embeddings, self.farthest)
        bias_RN = super().__call__(jnp.asarray(places_R))
        return bias_RN[ahead_BTS + length - 1].transpose(0, 3, 1, 2)


def buckets(ahead: np.ndarray, both_ways: bool, count: int, farthest: int) -> np.ndarray:
    """int32[R]: the bucket of each number of tokens that a key is ahead of its query.

    Near ones have a bucket each, farther ones share them on a scale of logarithms up to `farthest`. Looking both ways
    halves the buckets; otherwise keys ahead count as the query's own place.
    """
    first = np.zeros_like(ahead)
    if both_ways:
        count //= 2
        first, far = np.where(ahead > 0, count, 0), np.abs(ahead)
    else:
        far = np.maximum(-ahead, 0)
    exact = count // 2
    # In float32, as the weights were trained: a wider type may round a bucket's edge the other way.
    steps = np.log(np.maximum(far, exact).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(farthest / exact)
    )
    shared = exact + (steps * np.float32(count - exact)).astype(np.int32)
    return (first + np.where(far < exact, far, np.minimum(shared, count - 1))).astype(np.int32)


class MLP(nnx.Module):
    """down(act(up(x))) without biases, with dropout in between."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        def linear(inputs, outputs):
            init = nnx.initializers.normal(config.initializer_factor * inputs**-0.5)
            return Linear(inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs)

        self.up, self.down = linear(config.d_model, config.d_ff), linear(config.d_ff, config.d_model)
        self.act, self.rate = config.mlp[1], config.dropout_rate

    def __call__(self, x, key):
        """float[..., D] -> float[..., D]."""
        return self.down(dropout(activation(self.act)(self.up(x)), self.rate, key))


class Block(nnx.Module):
    """Self-attention, the decoder's attention to the encoder, and MLP, each behind a norm and followed by a sum.

    The first block of a chain owns the relative biases of all.
    """

    def __init__(self, config: Config, decoder: bool, owner: str | None, *, rngs: nnx.Rngs):
        def norm():
            return RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon, rngs=rngs)

        gated, act = config.mlp
        self.attn_norm, self.attn = norm(), Attention(config, rngs=rngs)
        self.bias = RelativeBias(config, not decoder, rngs=rngs)
        self.tied = nnx.static({} if owner is None else {"bias/embedding": f"{owner}/bias/embedding"})
        if decoder:
            self.cross_norm, self.cross = norm(), Attention(config, rngs=rngs)
        self.mlp_norm = norm()
        if gated:
            init = nnx.initializers.normal(config.initializer_factor * config.d_model**-0.5)
            self.mlp = GatedMLP(
                config.d_model, config.d_ff, act, bias=False, rate=config.dropout_rate, kernel_init=init, rngs=rngs
            )
        else:
            self.mlp = MLP(config, rngs=rngs)
        self.decoder, self.dropout, self.drop_path = decoder, config.dropout_rate, 0.0

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        in_attn, after_attn, in_cross, after_cross, in_mlp, after_mlp, *drops = keys(context.key, 9)
        y_BTD, bias = self.attn_norm(x_BTD), self.bias(x_BTD.shape[1], context.memory)
        y_BTD = self.attn(y_BTD, y_BTD, context.batch["seen"], in_attn, bias, self.decoder, context.memory)
        x_BTD = x_BTD + drop_path(dropout(y_BTD, self.dropout, after_attn), self.drop_path, drops[0])
        if self.decoder:
            encoded_BSD, mask_BS = context.batch["encoded"], context.batch["encoded_mask"]
            y_BTD = self.cross(self.cross_norm(x_BTD), encoded_BSD, mask_BS, in_cross, memory=context.memory)
            x_BTD = x_BTD + drop_path(dropout(y_BTD, self.dropout, after_cross), self.drop_path, drops[1])
        y_BTD = dropout(self.mlp(self.mlp_norm(x_BTD), in_mlp), self.dropout, after_mlp)
        return x_BTD + drop_path(y_BTD, self.drop_path, drops[2])


class Norm(RMSNorm):
    """The norm after the last block of a chain, as a stage."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config.d_model, epsilon=config.layer_norm_epsilon, rngs=rngs)
        self.dropout = config.dropout_rate

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        return dropout(super().__call__(x_BTD), self.dropout, context.key)


class Pooler(nnx.Linear):
    """The first layer of the published head, as a stage: tanh of a dense layer over the last token that counts."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state` float[B, T, D] and `pooler_output` float[B, D]."""
        last_B = x_BTD.shape[1] - 1 - jnp.argmax(context.batch["attention_mask"][:, ::-1].astype(bool), axis=1)
        last_BD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
        return {"last_hidden_state": x_BTD, "pooler_output": jnp.tanh(super().__call__(last_BD))}


class Backbone(chain.Backbone):
    """Chains `encoder` (`stem`, `blocks/0` …, `encoder_norm`) and `decoder` (`decoder_stem`, its blocks, which are
    counted on, `norm`, and `pooler` or `lm_head` where the config has one)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Embeddings(config, {}, rngs=rngs)
        self.decoder_stem = Embeddings(config, {"word/embedding": "stem/word/embedding"}, rngs=rngs)
        blocks, chains = [], {}
        for name, numbers in config.chains().items():
            for number in numbers:
                owner = None if number == numbers[0] else f"blocks/{numbers[0]}"
                blocks.append(Block(config, name == "decoder", owner, rngs=rngs))
            chains[name] = tuple(f"blocks/{number}" for number in numbers)
        self.blocks = nnx.List(blocks)
        self.encoder_norm, self.norm = Norm(config, rngs=rngs), Norm(config, rngs=rngs)
        chains["encoder"] = ("stem", *chains["encoder"], "encoder_norm")
        chains["decoder"] = ("decoder_stem", *chains["decoder"], "norm")
        self.chains = nnx.static(chains)
        self.reads = nnx.static({"decoder": ("encoder",)})
        if config.pooler:
            init = nnx.initializers.normal(config.initializer_factor * config.d_model**-0.5)
            self.add_stage("pooler", Pooler(config.d_model, config.d_model, kernel_init=init, rngs=rngs))
        if config.lm_head:
            tied = config.tie_word_embeddings and config.scale_decoder_outputs
            head = Words(
                config.d_model,
                config.vocab_size,
                tied="stem/word/embedding" if tied else None,
                # The embedding is of order 1, as the output of this layer should be.
                scale=config.d_model**-0.5 if tied else 1.0,
                kernel_init=nnx.initializers.normal(config.initializer_factor),
                rngs=rngs,
            )
            self.add_stage("lm_head", head)
        self.width = config.d_model

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, S]; `attention_mask` (default: all ones), `decoder_input_ids` int[B, T] (the text, one
        token late) and `decoder_attention_mask` (all ones) may be absent."""
        ids_BS, mask_BS = batch["input_ids"], batch.get("attention_mask")
        mask_BS = jnp.ones_like(ids_BS) if mask_BS is None else mask_BS
        if chain == "encoder":
            return Carry(ids_BS, {"seen": mask_BS}, {})
        encoded = {"encoded": done["encoder"], "encoded_mask": mask_BS}
        if "decoder_input_ids" not in batch:
            start = self.config.decoder_start_token_id or 0
            ids_BT = jnp.pad(ids_BS[:, :-1], ((0, 0), (1, 0)), constant_values=start)
            # Nothing that counts looks at what does not: the decoder is causal, texts are padded on the right.
            return Carry(ids_BT, {"seen": jnp.ones_like(ids_BT), "attention_mask": mask_BS, **encoded}, {})
        ids_BT, mask_BT = batch["decoder_input_ids"], batch.get("decoder_attention_mask")
        mask_BT = jnp.ones_like(ids_BT) if mask_BT is None else mask_BT
        return Carry(ids_BT, {"seen": mask_BT, "attention_mask": mask_BT, **encoded}, {})


_HF = "transformer."
_ENCODER, _DECODER = (
    (f"{_HF}encoder.block.{{e}}.layer", "blocks/{e}"),
    (f"{_HF}decoder.block.{{d}}.layer", "blocks/{b}"),
)
_QKV = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
_MLP = (("wi_0", "gate"), ("{up}", "up"), ("wo", "down"))


def _half(block: tuple[str, str], place: int, theirs: str, ours: str, names) -> tuple[Rule, ...]:
    """One of a block's parts and the norm before it."""
    hf, path = f"{block[0]}.{place}", block[1]
    linear = (Rule(f"{hf}.{theirs}.{name}.weight", f"{path}/{ours}/{own}/kernel", LINEAR) for name, own in names)
    return (Rule(f"{hf}.layer_norm.weight", f"{path}/{ours}_norm/scale", SAME), *linear)


SOURCES = {
    "hf": Source(
        rules=(
            Rule(f"{_HF}shared.weight", "stem/word/embedding", SAME),
            *_half(_ENCODER, 0, "SelfAttention", "attn", _QKV),
            Rule(f"{_ENCODER[0]}.0.SelfAttention.relative_attention_bias.weight", "blocks/{e}/bias/embedding", SAME),
            *_half(_ENCODER, 1, "DenseReluDense", "mlp", _MLP),
            Rule(f"{_HF}encoder.final_layer_norm.weight", "encoder_norm/scale", SAME),
            *_half(_DECODER, 0, "SelfAttention", "attn", _QKV),
            Rule(f"{_DECODER[0]}.0.SelfAttention.relative_attention_bias.weight", "blocks/{b}/bias/embedding", SAME),
            *_half(_DECODER, 1, "EncDecAttention", "cross", _QKV),
            *_half(_DECODER, 2, "DenseReluDense", "mlp", _MLP),
            Rule(f"{_HF}decoder.final_layer_norm.weight", "norm/scale", SAME),
            Rule("classification_head.dense.weight", "pooler/kernel", LINEAR),
            Rule("classification_head.dense.bias", "pooler/bias", SAME),
            Rule("classification_head.out_proj.weight", "head/kernel", LINEAR),
            Rule("classification_head.out_proj.bias", "head/bias", SAME),
            Rule("lm_head.weight", "lm_head/kernel", LINEAR),
        ),
        prefix=_HF,
        # Older files hold the embedding for each chain again, and a bias that attention across them never read.
        ignored=(
            r"transformer\.(en|de)coder\.embed_tokens\.weight",
            r"transformer\.decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
            r"lm_head\..*",
        ),
        optional=(r"classification_head\..*",),
    )
}
RESIZE = (("stem/word/embedding", "vocabulary", ("vocab_size",)),)  # see `weights.surgery`
SHARDING = (
    (r"blocks/\d+/((attn|cross)/(query|key|value)|mlp/(gate|up))/kernel", (None, "tensor")),
    (r"blocks/\d+/((attn|cross)/out|mlp/down)/kernel", ("tensor", None)),
    (r"stem/word/embedding", ("tensor", None)),
    (r"lm_head/kernel", (None, "tensor")),
)
