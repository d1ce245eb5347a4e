# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower alone (Radford et al. 2021), with its projection into the common space or without.

    config = Config.from_published({"model_type": "clip_text_model", "hidden_size": 512, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_ids": ids, "attention_mask": mask})
    outputs["pooler_output"]                          # the feature of each text's end

Checked against `transformers`' CLIPTextModel and CLIPTextModelWithProjection, whose `text_embeds` is not of length 1.
"""

import dataclasses
from typing import Any

from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry
from tl_jax.models import clip
from tl_jax.nn import towers
from tl_jax.nn.functions import activation
from tl_jax.weights.rules import LINEAR, Rule, Source, published_fields

MODEL_TYPES = ("clip_text_model",)
INPUTS = ("input_ids", "attention_mask")
POOLS = ("pooler", "mean")
HEADS: dict[str, tuple[str, dict[str, Any]]] = {}


@dataclasses.dataclass(frozen=True)
class Config(clip.Text):
    """Sizes and rates, under their published names.

    Attributes:
      projection_dim: of the common space.
      projected: texts have a feature in it.
    """

    projection_dim: int = 512
    projected: bool = False

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        config = published_fields(cls, data)
        activation(config.hidden_act)
        return dataclasses.replace(config, projected="CLIPTextModelWithProjection" in (data.get("architectures") or ()))

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"t": t} for t in range(self.num_hidden_layers)]

    def without(self, pool: str) -> "Config":
        """Without the projection, which no head reads."""
        return dataclasses.replace(self, projected=False) if pool else self


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = towers.TextEmbeddings(config, rngs=rngs)
        self.blocks = towers.blocks(config, causal=True, rngs=rngs)
        self.pool = clip.TextPool(config, config.projection_dim if config.projected else None, rngs=rngs)
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(len(self.blocks))), "pool")})
        self.width = config.hidden_size

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, T] and, where texts are padded, `attention_mask`.

        Raises:
          UserError: more tokens than the network has positions.
        """
        return clip.begin_texts(batch, self.config)


SOURCES = {
    "hf": Source(
        rules=(*clip.texts(""), Rule("text_projection.weight", "pool/projection/kernel", LINEAR)),
        prefix="text_model.",
        ignored=(r".*\.position_ids",),
        optional=(r"text_projection\.weight",),
    )
}
RESIZE = (("stem/word/embedding", "vocabulary", ("vocab_size",)),)  # see `weights.surgery`
SHARDING = clip.SHARDING
