# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GPT-2 (Radford et al. 2019), as a reader and a writer of texts.

    config = Config.from_published({"model_type": "gpt2", "n_embd": 768, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_ids": ids, "attention_mask": mask})

Pre-norm causal decoder with learned absolute positions, checked against `transformers`' GPT2Model. Texts are padded on
the right: positions count from the first token whatever the mask says. Of several texts in a row, each has its own.
"""

# B batch, T time, D width

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn import segments
from tl_jax.nn.embed import Embed
from tl_jax.nn.functions import activation, dropout
from tl_jax.nn.prenorm import Block, Norm
from tl_jax.nn.words import Words
from tl_jax.weights.rules import LINEAR, SAME, Layout, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("gpt2",)
INPUTS = ("input_ids", "attention_mask", "segments")
POOLS = ("last", "mean")
HEADS = {
    "GPT2LMHeadModel": ("language_model", {}),
    "GPT2ForSequenceClassification": ("classification", {"pool": "last", "bias": False}),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names.

    Attributes:
      n_inner: four times the width where None.
      tie_word_embeddings: whether the layer that predicts words is the embedding once more.
      lm_head: whether that layer is built.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    lm_head: bool = False

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        refused = {
            "scale_attn_weights": (True, None),
            "scale_attn_by_inverse_layer_idx": (False, None),
            "add_cross_attention": (False, None),
        }
        config = published_fields(cls, data, refused)
        activation(config.activation_function)
        return config

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"i": i} for i in range(self.n_layer)]

    def without(self, pool: str) -> "Config":
        """With the layer that predicts words where this is `lm_head`, and else without."""
        return dataclasses.replace(self, lm_head=pool == "lm_head")


class Embeddings(nnx.Module):
    """Sum of word and position embeddings."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.n_embd
        self.word = Embed(config.vocab_size, width, embedding_init=init, rngs=rngs)
        self.position = Embed(config.n_positions, width, embedding_init=init, rngs=rngs)
        self.dropout = config.embd_pdrop

    def __call__(self, ids_BT: jax.Array, context: Context):
        """int[B, T] -> float[B, T, D]."""
        places = context.batch["places"] if context.memory is None else context.memory.places_BT
        places = jnp.arange(ids_BT.shape[1]) if places is None else places
        return dropout(self.word(ids_BT) + self.position(places), self.dropout, context.key)


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … and `norm`, and `lm_head` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.n_embd
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        self.blocks = nnx.List(
            Block(
                width,
                config.n_head,
                4 * width if config.n_inner is None else config.n_inner,
                config.activation_function,
                epsilon=config.layer_norm_epsilon,
                causal=True,
                dropout=config.resid_pdrop,
                attention_dropout=config.attn_pdrop,
                kernel_init=nnx.initializers.normal(config.initializer_range),
                rngs=rngs,
            )
            for _ in range(config.n_layer)
        )
        self.norm = Norm(width, epsilon=config.layer_norm_epsilon, rngs=rngs)
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(config.n_layer)), "norm")})
        self.width = width
        if config.lm_head:
            tied = "stem/word/embedding" if config.tie_word_embeddings else None
            init = nnx.initializers.normal(config.initializer_range)
            self.add_stage("lm_head", Words(width, config.vocab_size, tied=tied, kernel_init=init, rngs=rngs))

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, T]; `attention_mask` (default: all ones) may be absent, or give way to `segments`, see
        `nn.segments`.

        Raises:
          UserError: more tokens than there are positions, segments that cannot be told apart.
        """
        ids_BT = batch["input_ids"]
        limit = self.config.n_positions
        if ids_BT.shape[1] > limit:
            raise UserError("input_ids", f"has {ids_BT.shape[1]} tokens, the network has {limit} positions", "cut them")
        mask, places_BT = segments.read(batch, self.chains[chain][-1])
        return Carry(ids_BT, {"attention_mask": mask, "places": places_BT}, {})


FUSED = Layout(  # [in, 3 * out], or [3 * out], for queries, keys and values
    "3 fused",
    lambda tensors: tuple(np.split(tensors[0], 3, axis=-1)),
    lambda params: (np.concatenate(params, axis=-1),),
)
_HF, _BLOCK = "transformer.h.{i}", "blocks/{i}"
_LINEAR = (  # (name in the file, path); kernels lie as here
    (f"{_HF}.attn.c_proj", f"{_BLOCK}/attn/out"),
    (f"{_HF}.mlp.c_fc", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.mlp.c_proj", f"{_BLOCK}/mlp/down"),
)
_NORM = (
    (f"{_HF}.ln_1", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.ln_2", f"{_BLOCK}/mlp_norm"),
    ("transformer.ln_f", "norm"),
)
_QKV = tuple(f"{_BLOCK}/attn/{name}" for name in ("query", "key", "value"))
SOURCES = {
    "hf": Source(
        rules=(
            Rule("transformer.wte.weight", "stem/word/embedding", SAME),
            Rule("transformer.wpe.weight", "stem/position/embedding", SAME),
            Rule(f"{_HF}.attn.c_attn.weight", tuple(f"{path}/kernel" for path in _QKV), FUSED),
            Rule(f"{_HF}.attn.c_attn.bias", tuple(f"{path}/bias" for path in _QKV), FUSED),
            *dense(_LINEAR, SAME),
            *norms(_NORM),
            Rule("score.weight", "head/kernel", LINEAR),
            Rule("lm_head.weight", "lm_head/kernel", LINEAR),
        ),
        prefix="transformer.",
        # Older files hold the causal mask, and the embedding again as the layer that predicts words.
        ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", r"lm_head\..*"),
        optional=(r"score\..*",),
    )
}
RESIZE = (("stem/word/embedding", "vocabulary", ("vocab_size",)),)  # see `weights.surgery`
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
    (r"stem/word/embedding", ("tensor", None)),
    (r"lm_head/kernel", (None, "tensor")),
)
