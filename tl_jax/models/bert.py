# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""BERT and its compact relatives such as MiniLM (Devlin et al. 2018; Wang et al. 2020).

    config = Config.from_published({"model_type": "bert", "hidden_size": 384, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"input_ids": ids, "attention_mask": mask})

Post-norm encoder with learned absolute positions, checked against `transformers`' BertModel.
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
from tl_jax.nn.pooling import Pooler
from tl_jax.weights.rules import SAME, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("bert",)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
POOLS = ("pooler", "cls", "mean")
HEADS = {
    "BertForSequenceClassification": ("classification", {"pool": "pooler"}),
    "BertForQuestionAnswering": ("extractive_qa", {}),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names; `pooler` says whether the pooling layer is built."""

    vocab_size: int = 30522
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
    pad_token_id: int | None = 0
    pooler: bool = True

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
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, pooler=pool == "pooler")


class Embeddings(nnx.Module):
    """Sum of word, position and segment embeddings, normalised."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size

        def embed(size):
            return Embed(size, width, embedding_init=init, rngs=rngs)

        self.word = embed(config.vocab_size)
        self.position = embed(config.max_position_embeddings)
        self.type = embed(config.type_vocab_size)
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.dropout = config.hidden_dropout_prob

    def __call__(self, x: dict[str, jax.Array], context: Context):
        """int[B, T] ids and segments -> float[B, T, D]."""
        ids_BT, types_BT = x["input_ids"], x["token_type_ids"]
        positions_T = jnp.arange(ids_BT.shape[1])
        x_BTD = self.word(ids_BT) + self.position(positions_T) + self.type(types_BT)
        return dropout(self.norm(x_BTD), self.dropout, context.key)


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        init, attention = nnx.initializers.normal(config.initializer_range), config.attention_probs_dropout_prob

        def block():
            return PostNormBlock(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_act,
                epsilon=config.layer_norm_eps,
                rates=(attention, config.hidden_dropout_prob, config.hidden_dropout_prob),
                kernel_init=init,
                rngs=rngs,
            )

        self.blocks = nnx.List([block() for _ in range(config.num_hidden_layers)])
        names = ["stem", *(f"blocks/{i}" for i in range(config.num_hidden_layers))]
        if config.pooler:
            self.pooler = Pooler(config.hidden_size, config.hidden_size, kernel_init=init, rngs=rngs)
            names.append("pooler")
        self.chains = nnx.static({"": tuple(names)})
        self.width = config.hidden_size

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, T]; `attention_mask` (default: all ones) and `token_type_ids` (zeros) may be absent.

        Raises:
          UserError: more tokens than there are positions.
        """
        ids_BT = batch["input_ids"]
        if ids_BT.shape[1] > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise UserError("input_ids", f"has {ids_BT.shape[1]} tokens, the network has {limit} positions", "cut them")
        types_BT = batch.get("token_type_ids")
        mask_BT = batch.get("attention_mask")
        x = {"input_ids": ids_BT, "token_type_ids": jnp.zeros_like(ids_BT) if types_BT is None else types_BT}
        return Carry(x, {"attention_mask": jnp.ones_like(ids_BT) if mask_BT is None else mask_BT}, {})


_HF, _BLOCK = "bert.encoder.layer.{i}", "blocks/{i}"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.attention.self.query", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.self.key", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.self.value", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.output.dense", f"{_BLOCK}/attn/out"),
    (f"{_HF}.intermediate.dense", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.output.dense", f"{_BLOCK}/mlp/down"),
    ("bert.pooler.dense", "pooler"),
    ("classifier", "head"),
    ("qa_outputs", "qa_outputs"),
)
_NORM = (
    ("bert.embeddings.LayerNorm", "stem/norm"),
    (f"{_HF}.attention.output.LayerNorm", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.output.LayerNorm", f"{_BLOCK}/mlp_norm"),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule("bert.embeddings.word_embeddings.weight", "stem/word/embedding", SAME),
            Rule("bert.embeddings.position_embeddings.weight", "stem/position/embedding", SAME),
            Rule("bert.embeddings.token_type_embeddings.weight", "stem/type/embedding", SAME),
            *dense(_LINEAR),
            *norms(_NORM),
        ),
        prefix="bert.",
        # Files converted from TensorFlow, the first ones published, call a norm's leaves so.
        aliases=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
        ignored=(r"bert\.embeddings\.position_ids", r"cls\..*"),
        optional=(r"bert\.pooler\..*", r"(classifier|qa_outputs)\..*"),
    )
}
RESIZE = (("stem/word/embedding", "vocabulary", ("vocab_size",)),)  # see `weights.surgery`
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
    (r"stem/word/embedding", ("tensor", None)),
)
