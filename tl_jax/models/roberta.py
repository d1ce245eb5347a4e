# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""RoBERTa, XLM-RoBERTa and CamemBERT (Liu et al. 2019; Conneau et al. 2019; Martin et al. 2019).

    config = Config.from_published({"model_type": "roberta", "hidden_size": 768, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_ids": ids, "attention_mask": mask})

BERT's encoder over one segment, with positions that skip padding ids; checked against `transformers`' RobertaModel.
"""

# B batch, T time, D width

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn.blocks import PostNormBlock
from tl_jax.nn.embed import Embed
from tl_jax.nn.functions import activation, dropout
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.pooling import Pooler
from tl_jax.weights.rules import SAME, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")
INPUTS = ("input_ids", "attention_mask")
POOLS = ("pooler", "cls", "mean")
HEADS = {
    "RobertaForSequenceClassification": ("classification", {"pool": "pooler"}),
    "XLMRobertaForSequenceClassification": ("classification", {"pool": "pooler"}),
    "CamembertForSequenceClassification": ("classification", {"pool": "pooler"}),
    "RobertaForQuestionAnswering": ("extractive_qa", {}),
    "XLMRobertaForQuestionAnswering": ("extractive_qa", {}),
    "CamembertForQuestionAnswering": ("extractive_qa", {}),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      pad_token_id: the id that positions skip; they are counted from the one after it.
      pooler: the stage that pools: the bare network's own, the first layer of a published head, or none. They are two
        layers: training a head starts `dense` anew, whatever the bare network's file holds.
    """

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    pooler: Literal["pooler", "dense", ""] = "pooler"

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        refused = {"position_embedding_type": ("absolute", None), "is_decoder": (False, None)}
        config = published_fields(cls, data, refused)
        activation(config.hidden_act)
        return config

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"i": i} for i in range(self.num_hidden_layers)]

    def without(self, pool: str) -> "Config":
        """With the first layer of a head if the head has this pooling, and without any pooling layer otherwise."""
        return dataclasses.replace(self, pooler="dense" if pool == "pooler" else "")


class Embeddings(nnx.Module):
    """Sum of word and position embeddings and that of the first segment, normalised."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size

        def embed(size):
            return Embed(size, width, embedding_init=init, rngs=rngs)

        self.word = embed(config.vocab_size)
        self.position = embed(config.max_position_embeddings)
        self.type = embed(config.type_vocab_size)
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.dropout, self.pad = config.hidden_dropout_prob, config.pad_token_id

    def __call__(self, ids_BT: jax.Array, context: Context):
        """int[B, T] -> float[B, T, D]."""
        # The published tokenizers know one segment, whose embedding belongs to every token.
        x_BTD = self.word(ids_BT) + self.position(positions(ids_BT, self.pad)) + self.type(jnp.zeros_like(ids_BT))
        return dropout(self.norm(x_BTD), self.dropout, context.key)


def positions(ids_BT: jax.Array, pad: int) -> jax.Array:
    """int[B, T]: the place of each token among those that are not `pad`, counted from `pad + 1`; that of `pad` is
    `pad`."""
    counts_BT = ids_BT != pad
    return pad + jnp.cumsum(counts_BT, axis=1) * counts_BT


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pooler` or `dense` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        self.blocks = nnx.List(
            PostNormBlock(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_act,
                epsilon=config.layer_norm_eps,
                rates=(config.attention_probs_dropout_prob, config.hidden_dropout_prob, config.hidden_dropout_prob),
                kernel_init=init,
                rngs=rngs,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(config.num_hidden_layers)))})
        if config.pooler:
            self.add_stage(config.pooler, Pooler(width, width, kernel_init=init, rngs=rngs))
        self.width = width

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, T]; `attention_mask` (default: all ones) may be absent.

        Raises:
          UserError: more tokens than there are positions.
        """
        ids_BT, mask_BT = batch["input_ids"], batch.get("attention_mask")
        limit = self.config.max_position_embeddings - self.config.pad_token_id - 1
        if ids_BT.shape[1] > limit:
            raise UserError("input_ids", f"has {ids_BT.shape[1]} tokens, the network has {limit} positions", "cut them")
        return Carry(ids_BT, {"attention_mask": jnp.ones_like(ids_BT) if mask_BT is None else mask_BT}, {})


_HF, _BLOCK = "roberta.encoder.layer.{i}", "blocks/{i}"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.self.query", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.self.key", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.self.value", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.output.dense", f"{_BLOCK}/attn/out"),
    (f"{_HF}.intermediate.dense", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.output.dense", f"{_BLOCK}/mlp/down"),
    ("roberta.pooler.dense", "pooler"),
    ("classifier.dense", "dense"),
    ("classifier.out_proj", "head"),
    ("qa_outputs", "qa_outputs"),
)
_NORM = (
    ("roberta.embeddings.LayerNorm", "stem/norm"),
    (f"{_HF}.attention.output.LayerNorm", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.output.LayerNorm", f"{_BLOCK}/mlp_norm"),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule("roberta.embeddings.word_embeddings.weight", "stem/word/embedding", SAME),
            Rule("roberta.embeddings.position_embeddings.weight", "stem/position/embedding", SAME),
            Rule("roberta.embeddings.token_type_embeddings.weight", "stem/type/embedding", SAME),
            *dense(_LINEAR),
            *norms(_NORM),
        ),
        prefix="roberta.",
        ignored=(r"roberta\.embeddings\.position_ids", r"lm_head\..*"),
        optional=(r"roberta\.pooler\..*", r"(classifier|qa_outputs)\..*"),
    )
}
RESIZE = (("stem/word/embedding", "vocabulary", ("vocab_size",)),)  # see `weights.surgery`
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
    (r"stem/word/embedding", ("tensor", None)),
)
