# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP's text tower alone (Zhai et al. 2023).

    config = Config.from_published({"model_type": "siglip_text_model", "hidden_size": 768, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_ids": ids})
    outputs["pooler_output"]                          # each text's feature in the common space

Checked against `transformers`' SiglipTextModel. The feature is the last position's, padding or not, so texts are padded
to the full length for it and nothing is masked; a task's head reads the mean over tokens, which no padding changes.
"""

import dataclasses
from typing import Any

from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry
from tl_jax.models import clip, siglip
from tl_jax.nn import towers
from tl_jax.nn.functions import activation
from tl_jax.weights.rules import Source, dense, published_fields

MODEL_TYPES = ("siglip_text_model",)
INPUTS = ("input_ids", "attention_mask")
POOLS = ("mean",)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {}


@dataclasses.dataclass(frozen=True)
class Config(siglip.Text):
    """Sizes and rates, under their published names."""

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        config = published_fields(cls, data)
        activation(config.hidden_act)
        return config

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"t": t} for t in range(self.num_hidden_layers)]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: all is kept, as the norm is the pooling layer's."""
        return self


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = towers.TextEmbeddings(config, rngs=rngs)
        self.blocks = towers.blocks(config, rngs=rngs)
        self.pool = siglip.TextPool(config, rngs=rngs)
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(self.blocks))), "pool")})
        self.width = config.hidden_size

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, T], and `attention_mask` where padding is not to be attended to.

        Raises:
          UserError: more tokens than the network has positions.
        """
        ids_BT, mask_BT = towers.texts(batch, self.config.max_position_embeddings)
        return Carry(ids_BT, {"attention_mask": mask_BT}, {})


SOURCES = {
    "hf": Source(
        rules=(*clip.texts(""), *dense((("text_model.head", "pool/projection"),))),
        prefix="text_model.",
        ignored=(r".*\.position_ids",),
    )
}
RESIZE = (("stem/word/embedding", "vocabulary", ("vocab_size",)),)  # see `weights.surgery`
SHARDING = clip.SHARDING
