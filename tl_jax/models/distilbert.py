# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DistilBERT (Sanh et al. 2019).

    config = Config.from_published({"model_type": "distilbert", "dim": 768, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_ids": ids, "attention_mask": mask})

BERT's encoder without segments and without a pooling layer of its own; checked against `transformers`'
DistilBertModel.
"""

# B batch, T time, D width

import dataclasses
from typing import Any

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
from tl_jax.weights.rules import SAME, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("distilbert",)
INPUTS = ("input_ids", "attention_mask")
POOLS = ("pooler", "cls", "mean")
HEADS = {
    "DistilBertForSequenceClassification": ("classification", {"pool": "pooler"}),
    "DistilBertForQuestionAnswering": ("extractive_qa", {}),
}

_EPSILON = 1e-12


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names; `pooler` says whether the first layer of a head is built."""

    vocab_size: int = 30522
    dim: int = 768
    n_layers: int = 6
    n_heads: int = 12
    hidden_dim: int = 3072
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    pooler: bool = True

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`; positions that were sinusoids at first lie in the file too."""
        config = published_fields(cls, data)
        activation(config.activation)
        return config

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"i": i} for i in range(self.n_layers)]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, pooler=pool == "pooler")


class Embeddings(nnx.Module):
    """Sum of word and position embeddings, normalised."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.dim
        self.word = Embed(config.vocab_size, width, embedding_init=init, rngs=rngs)
        self.position = Embed(config.max_position_embeddings, width, embedding_init=init, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=_EPSILON, rngs=rngs)
        self.dropout = config.dropout

    def __call__(self, ids_BT: jax.Array, context: Context):
        """int[B, T] -> float[B, T, D]."""
        x_BTD = self.word(ids_BT) + self.position(jnp.arange(ids_BT.shape[1]))
        return dropout(self.norm(x_BTD), self.dropout, context.key)


class Pooler(nnx.Linear):
    """The first layer of the published head, as a stage: relu of a dense layer over the first token."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state` float[B, T, D] and `pooler_output` float[B, D]."""
        return {"last_hidden_state": x_BTD, "pooler_output": nnx.relu(super().__call__(x_BTD[:, 0]))}


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        self.blocks = nnx.List(
            PostNormBlock(
                config.dim,
                config.n_heads,
                config.hidden_dim,
                config.activation,
                epsilon=_EPSILON,
                rates=(config.attention_dropout, 0.0, config.dropout),
                kernel_init=init,
                rngs=rngs,
            )
            for _ in range(config.n_layers)
        )
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(config.n_layers)))})
        if config.pooler:
            self.add_stage("pooler", Pooler(config.dim, config.dim, kernel_init=init, rngs=rngs))
        self.width = config.dim

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, T]; `attention_mask` (default: all ones) may be absent.

        Raises:
          UserError: more tokens than there are positions.
        """
        ids_BT, mask_BT = batch["input_ids"], batch.get("attention_mask")
        limit = self.config.max_position_embeddings
        if ids_BT.shape[1] > limit:
            raise UserError("input_ids", f"has {ids_BT.shape[1]} tokens, the network has {limit} positions", "cut them")
        return Carry(ids_BT, {"attention_mask": jnp.ones_like(ids_BT) if mask_BT is None else mask_BT}, {})


_HF, _BLOCK = "distilbert.transformer.layer.{i}", "blocks/{i}"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.q_lin", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.k_lin", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.v_lin", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.out_lin", f"{_BLOCK}/attn/out"),
    (f"{_HF}.ffn.lin1", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.ffn.lin2", f"{_BLOCK}/mlp/down"),
    ("pre_classifier", "pooler"),
    ("classifier", "head"),
    ("qa_outputs", "qa_outputs"),
)
_NORM = (
    ("distilbert.embeddings.LayerNorm", "stem/norm"),
    (f"{_HF}.sa_layer_norm", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.output_layer_norm", f"{_BLOCK}/mlp_norm"),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule("distilbert.embeddings.word_embeddings.weight", "stem/word/embedding", SAME),
            Rule("distilbert.embeddings.position_embeddings.weight", "stem/position/embedding", SAME),
            *dense(_LINEAR),
            *norms(_NORM),
        ),
        prefix="distilbert.",
        ignored=(
            r"distilbert\.embeddings\.position_ids",
            r"vocab_(transform|layer_norm|projector)\..*",
        ),
        optional=(r"pre_classifier\..*", r"(classifier|qa_outputs)\..*"),
    )
}
RESIZE = (("stem/word/embedding", "vocabulary", ("vocab_size",)),)  # see `weights.surgery`
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
    (r"stem/word/embedding", ("tensor", None)),
)
