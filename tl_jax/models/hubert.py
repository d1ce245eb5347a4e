# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""HuBERT (Hsu et al. 2021): the form of wav2vec 2.0, trained to predict clusters of its own features.

    config = Config.from_published({"model_type": "hubert", "hidden_size": 768, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"input_values": samples, "attention_mask": mask})

Encoder of waveforms at 16 kHz, a frame every 20 ms, checked against `transformers`' HubertModel.
"""

import dataclasses
from typing import Any

from flax import nnx

from tl_jax.models import wav2vec2
from tl_jax.nn import waves
from tl_jax.weights.rules import published_fields

MODEL_TYPES = ("hubert",)
INPUTS = ("input_values", "attention_mask")
POOLS = ("mean", "pooler")
HEADS = {
    "HubertForSequenceClassification": ("classification", {"pool": "pooler"}),
    "HubertForCTC": ("ctc", {}),
}


@dataclasses.dataclass(frozen=True)
class Config(waves.Sizes):
    """Sizes and rates, under their published names; see `waves.Sizes`.

    Attributes:
      feat_proj_layer_norm: frames are normalised before they are projected.
    """

    feat_proj_layer_norm: bool = True

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        refused = {"conv_pos_batch_norm": (False, None), "use_weighted_layer_sum": (False, None)}
        return published_fields(cls, data, refused).checked()


class Backbone(waves.Encoder):
    """Stages `stem`, `positions`, `blocks/0` …, `norm` in the pre-norm form, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        blocks = [waves.Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        super().__init__(config, blocks, waves.Stem(config, norm=config.feat_proj_layer_norm, rngs=rngs), rngs=rngs)


SOURCES = {"hf": wav2vec2.source("hubert")}
SHARDING = wav2vec2.SHARDING
