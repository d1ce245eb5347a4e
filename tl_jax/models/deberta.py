# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DeBERTa v2 and v3 (He et al. 2020, 2021).

    config = Config.from_published({"model_type": "deberta-v2", "hidden_size": 768, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_ids": ids, "attention_mask": mask})

Post-norm encoder whose attention compares content and relative position apart; checked against `transformers`'
DebertaV2Model.
"""

# B batch, T queries, S keys, D width, N heads, H width of a head, R relative positions

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
from tl_jax.nn.convolution import convolve
from tl_jax.nn.embed import Embed
from tl_jax.nn.functions import activation, dropout, keys
from tl_jax.nn.linear import Linear
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.residual import drop_path
from tl_jax.weights.rules import SAME, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("deberta-v2",)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
POOLS = ("pooler", "cls", "mean")
HEADS = {
    "DebertaV2ForSequenceClassification": ("classification", {"pool": "pooler"}),
    "DebertaV2ForQuestionAnswering": ("extractive_qa", {}),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      position_biased_input: words have absolute positions too.
      relative_attention: attention reads relative positions, up to `max_relative_positions` (those of the text where
        it is not positive), in `position_buckets` where that is positive.
      pos_att_type: `c2p`, content of the query with position of the key, and `p2c`, the other way round.
      share_att_key: positions pass through the layers of the content's queries and keys.
      norm_rel_ebd: `layer_norm` normalises the embeddings of relative positions.
      conv_kernel_size: tokens that a convolution beside the first block looks at; 0 for none.
      pooler: whether the first layer of a head is built.
    """

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    position_biased_input: bool = True
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"
    pooler_hidden_act: str = "gelu"
    pooler: bool = True

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        kinds, width = data.get("pos_att_type") or (), data.get("hidden_size", cls.hidden_size)
        kinds = kinds.split("|") if isinstance(kinds, str) else kinds
        refused = {
            "norm_rel_ebd": ("layer_norm", "none"),
            "embedding_size": (width, None),
            "pooler_hidden_size": (width, None),
            "attention_head_size": (width // data.get("num_attention_heads", cls.num_attention_heads), None),
        }
        config = published_fields(cls, {**data, "pos_att_type": [kind.strip().lower() for kind in kinds]}, refused)
        for act in (config.hidden_act, config.conv_act, config.pooler_hidden_act):
            activation(act)
        return config

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"i": i} for i in range(self.num_hidden_layers)]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, pooler=pool == "pooler")

    @property
    def farthest(self) -> int:
        """The largest relative position."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Embeddings of relative positions on each side."""
        return self.position_buckets if self.position_buckets > 0 else self.farthest


class Embeddings(nnx.Module):
    """Sum of word, position and segment embeddings, as far as there are any, normalised; zero where the mask is."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size

        def embed(size):
            return Embed(size, width, embedding_init=init, rngs=rngs) if size else None

        self.word = embed(config.vocab_size)
        self.position = embed(config.max_position_embeddings if config.position_biased_input else 0)
        self.type = embed(config.type_vocab_size)
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.dropout = config.hidden_dropout_prob

    def __call__(self, x: dict[str, jax.Array], context: Context):
        """int[B, T] ids and segments -> float[B, T, D]."""
        x_BTD = self.word(x["input_ids"])
        if self.position is not None:
            x_BTD += self.position(jnp.arange(x_BTD.shape[1]))
        if self.type is not None:
            x_BTD += self.type(x["token_type_ids"])
        x_BTD = self.norm(x_BTD) * context.batch["attention_mask"][..., None].astype(x_BTD.dtype)
        return dropout(x_BTD, self.dropout, context.key)


class Attention(nnx.Module):
    """Scores of content with content, content with position and position with content, at one common scale."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size

        def linear():
            return Linear(width, width, kernel_init=init, rngs=rngs)

        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()
        kinds = config.pos_att_type
        apart = config.relative_attention and not config.share_att_key
        self.position_key = linear() if apart and "c2p" in kinds else None
        self.position_query = linear() if apart and "p2c" in kinds else None
        self.kinds, self.num_heads = kinds, config.num_attention_heads
        self.span, self.buckets, self.farthest = config.span, config.position_buckets, config.farthest
        self.rates = config.attention_probs_dropout_prob, config.hidden_dropout_prob

    def __call__(self, x_BTD, relative_RD, mask_BT, key):
        """float[B, T, D] -> float[B, T, D]; `relative_RD` embeds relative positions, or is None."""
        in_weights, in_relative = keys(key, 2)
        q_BTNH, k_BSNH, v_BSNH = (heads(layer(x_BTD), self.num_heads) for layer in (self.query, self.key, self.value))
        scale = (q_BTNH.shape[-1] * (1 + len(self.kinds))) ** -0.5
        bias_BNTS = None
        if relative_RD is not None:
            relative_RD = dropout(relative_RD, self.rates[1], in_relative)
            bias_BNTS = scale * self._relative(q_BTNH, k_BSNH, relative_RD)
        # A masked query sees nothing, as in the published network.
        mask_BTS = mask_BT[:, :, None] * mask_BT[:, None, :]
        y_BTNH = attend(
            q_BTNH, k_BSNH, v_BSNH, mask_BTS, bias=bias_BNTS, scale=scale, rate=self.rates[0], key=in_weights
        )
        return self.out(y_BTNH.reshape(x_BTD.shape))

    def _relative(self, q_BTNH, k_BSNH, relative_RD):
        """float32[B, N, T, S]: what relative positions add to the scores."""
        length = q_BTNH.shape[1]
        distances = relative_positions(np.arange(1 - length, length), self.buckets, self.farthest)
        places_R = jnp.asarray(np.clip(distances + self.span, 0, 2 * self.span - 1))
        places_TS = places_R[jnp.arange(length)[:, None] - jnp.arange(length) + length - 1]
        scores = jnp.zeros((), jnp.float32)
        if "c2p" in self.kinds:
            k_RNH = heads((self.position_key or self.key)(relative_RD), self.num_heads)
            all_BNTR = jnp.einsum("btnh,rnh->bntr", q_BTNH, k_RNH)
            scores += jnp.take_along_axis(all_BNTR, places_TS[None, None], axis=-1)
        if "p2c" in self.kinds:
            q_RNH = heads((self.position_query or self.query)(relative_RD), self.num_heads)
            all_BNSR = jnp.einsum("bsnh,rnh->bnsr", k_BSNH, q_RNH)
            scores += jnp.take_along_axis(all_BNSR, places_TS.T[None, None], axis=-1).swapaxes(2, 3)
        return scores


def relative_positions(behind: np.ndarray, count: int, farthest: int) -> np.ndarray:
    """int32[R]: which relative position stands for each number of tokens that a key is behind its query.

    Up to half of `count` each has its own; farther ones share them on a scale of logarithms up to `farthest`. Where
    `count` is not positive, all have their own.
    """
    middle = count // 2
    if count <= 0 or farthest <= 0:
        return behind.astype(np.int32)
    # In float32, as the weights were trained: a wider type may round an edge the other way.
    ratio = np.maximum(np.abs(behind), middle).astype(np.float32) / np.float32(middle)
    steps = np.log(ratio) / np.log(np.float32((farthest - 1) / middle)) * np.float32(middle - 1)
    far = np.sign(behind) * (np.ceil(steps) + middle)
    return np.where(np.abs(behind) <= middle, behind, far).astype(np.int32)


class Conv(nnx.Module):
    """A convolution over the words, added to what the first block makes of them (v2 alone)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, size = config.hidden_size, config.conv_kernel_size
        self.conv = nnx.Conv(
            width,
            width,
            (size,),
            padding=(size - 1) // 2,
            feature_group_count=config.conv_groups,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.act, self.dropout = config.conv_act, config.hidden_dropout_prob

    def __call__(self, words_BTD, x_BTD, mask_BT, key):
        """float[B, T, D] before and after the first block -> float[B, T, D]; zero where the mask is."""
        mask_BT1 = mask_BT[..., None].astype(x_BTD.dtype)
        y_BTD = activation(self.act)(dropout(self.conv(words_BTD) * mask_BT1, self.dropout, key))
        return self.norm(x_BTD + y_BTD) * mask_BT1


class Block(nnx.Module):
    """Attention and MLP, each followed by a residual sum and a norm. The first block owns the embeddings of relative
    positions, which all read."""

    def __init__(self, config: Config, number: int, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size

        def norm():
            return LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)

        relative, normed = config.relative_attention, config.relative_attention and config.norm_rel_ebd == "layer_norm"
        self.relative = Embed(2 * config.span, width, embedding_init=init, rngs=rngs) if relative else None
        self.relative_norm = norm() if normed else None
        shared = ["relative/embedding"] * relative + ["relative_norm/scale", "relative_norm/bias"] * normed
        self.tied = nnx.static({path: f"blocks/0/{path}" for path in shared if number})
        self.attn, self.attn_norm = Attention(config, rngs=rngs), norm()
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, kernel_init=init, rngs=rngs)
        self.mlp_norm = norm()
        self.conv = Conv(config, rngs=rngs) if config.conv_kernel_size > 0 and number == 0 else None
        self.dropout, self.drop_path = config.hidden_dropout_prob, 0.0

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        in_attn, after_attn, after_mlp, in_conv, drop_attn, drop_mlp = keys(context.key, 6)
        mask_BT, words_BTD = context.batch["attention_mask"], x_BTD
        relative_RD = None if self.relative is None else self.relative.embedding[...]
        if self.relative_norm is not None:
            relative_RD = self.relative_norm(relative_RD)
        y_BTD = dropout(self.attn(x_BTD, relative_RD, mask_BT, in_attn), self.dropout, after_attn)
        x_BTD = self.attn_norm(x_BTD + drop_path(y_BTD, self.drop_path, drop_attn))
        y_BTD = dropout(self.mlp(x_BTD), self.dropout, after_mlp)
        x_BTD = self.mlp_norm(x_BTD + drop_path(y_BTD, self.drop_path, drop_mlp))
        return x_BTD if self.conv is None else self.conv(words_BTD, x_BTD, mask_BT, in_conv)


class Pooler(nnx.Linear):
    """The first layer of the published head, as a stage: a dense layer over the first token, and its activation."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size
        super().__init__(width, width, kernel_init=init, rngs=rngs)
        self.act = config.pooler_hidden_act

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state` float[B, T, D] and `pooler_output` float[B, D]."""
        pooled_BD = activation(self.act)(super().__call__(x_BTD[:, 0]))
        return {"last_hidden_state": x_BTD, "pooler_output": pooled_BD}


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        self.blocks = nnx.List([Block(config, number, rngs=rngs) for number in range(config.num_hidden_layers)])
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(config.num_hidden_layers)))})
        if config.pooler:
            self.add_stage("pooler", Pooler(config, rngs=rngs))
        self.width = config.hidden_size

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, T]; `attention_mask` (default: all ones) and `token_type_ids` (zeros) may be absent.

        Raises:
          UserError: more tokens than there are absolute positions.
        """
        ids_BT, mask_BT, types_BT = (batch.get(name) for name in INPUTS)
        limit = self.config.max_position_embeddings
        if self.config.position_biased_input and ids_BT.shape[1] > limit:
            raise UserError("input_ids", f"has {ids_BT.shape[1]} tokens, the network has {limit} positions", "cut them")
        x = {"input_ids": ids_BT, "token_type_ids": jnp.zeros_like(ids_BT) if types_BT is None else types_BT}
        return Carry(x, {"attention_mask": jnp.ones_like(ids_BT) if mask_BT is None else mask_BT}, {})


_HF, _BLOCK = "deberta.encoder.layer.{i}", "blocks/{i}"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.self.query_proj", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.self.key_proj", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.self.value_proj", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.self.pos_key_proj", f"{_BLOCK}/attn/position_key"),
    (f"{_HF}.attention.self.pos_query_proj", f"{_BLOCK}/attn/position_query"),
    (f"{_HF}.attention.output.dense", f"{_BLOCK}/attn/out"),
    (f"{_HF}.intermediate.dense", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.output.dense", f"{_BLOCK}/mlp/down"),
    ("deberta.encoder.conv.conv", "blocks/0/conv/conv"),  # [out, in, size] <-> [size, in, out]
    ("pooler.dense", "pooler"),
    ("classifier", "head"),
    ("qa_outputs", "qa_outputs"),
)
_NORM = (
    ("deberta.embeddings.LayerNorm", "stem/norm"),
    (f"{_HF}.attention.output.LayerNorm", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.output.LayerNorm", f"{_BLOCK}/mlp_norm"),
    ("deberta.encoder.LayerNorm", "blocks/0/relative_norm"),
    ("deberta.encoder.conv.LayerNorm", "blocks/0/conv/norm"),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule("deberta.embeddings.word_embeddings.weight", "stem/word/embedding", SAME),
            Rule("deberta.embeddings.position_embeddings.weight", "stem/position/embedding", SAME),
            Rule("deberta.embeddings.token_type_embeddings.weight", "stem/type/embedding", SAME),
            Rule("deberta.encoder.rel_embeddings.weight", "blocks/0/relative/embedding", SAME),
            *dense(_LINEAR),
            *norms(_NORM),
        ),
        prefix="deberta.",
        # Published files keep positions that their config says are not read, and what they were pretrained with.
        ignored=(
            r"deberta\.embeddings\.(position_ids|position_embeddings\.weight)",
            r"(cls|lm_predictions|mask_predictions)\..*",
        ),
        optional=(r"pooler\..*", r"(classifier|qa_outputs)\..*"),
    )
}
SHARDING = (
    (r"blocks/\d+/(attn/(position_)?(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(position_)?(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
    (r"stem/word/embedding", ("tensor", None)),
)
