# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""wav2vec 2.0 (Baevski et al. 2020), and XLSR, which is published in the same form.

    config = Config.from_published({"model_type": "wav2vec2", "hidden_size": 768, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"input_values": samples, "attention_mask": mask})

Encoder of waveforms at 16 kHz, a frame every 20 ms, checked against `transformers`' Wav2Vec2Model.
"""

import dataclasses
from typing import Any

from flax import nnx

from tl_jax.nn import waves
from tl_jax.weights.rules import LINEAR, SAME, Layout, Rule, Source, published_fields

MODEL_TYPES = ("wav2vec2",)
INPUTS = ("input_values", "attention_mask")
POOLS = ("mean", "pooler")
HEADS = {
    "Wav2Vec2ForSequenceClassification": ("classification", {"pool": "pooler"}),
    "Wav2Vec2ForCTC": ("ctc", {"pool": "none"}),
}


@dataclasses.dataclass(frozen=True)
class Config(waves.Sizes):
    """Sizes and rates, under their published names; see `waves.Sizes`."""

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        refused = {"add_adapter": (False, None), "adapter_attn_dim": (None,), "use_weighted_layer_sum": (False, None)}
        return published_fields(cls, data, refused).checked()


class Backbone(waves.Encoder):
    """Stages `stem`, `positions`, `blocks/0` …, `norm` in the pre-norm form, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        blocks = [waves.Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        super().__init__(config, blocks, rngs=rngs)


# `LINEAR` turns all axes around, which is also what one convolution over time needs: [out, in, K] <-> [K, in, out].
_GAIN = Layout("flat", lambda tensors: (tensors[0].reshape(-1),), lambda params: (params[0].reshape(1, 1, -1),))
_HF, _BLOCK = "wav2vec2.encoder.layers.{i}", "blocks/{i}"
_CONV, _POSITIONS = "wav2vec2.feature_extractor.conv_layers.{c}", "wav2vec2.encoder.pos_conv_embed.conv"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_CONV}.conv", "stem/convs/{c}/conv"),
    ("wav2vec2.feature_projection.projection", "stem/projection"),
    (f"{_HF}.attention.q_proj", f"{_BLOCK}/attn/query"),
    (f"{_HF}.attention.k_proj", f"{_BLOCK}/attn/key"),
    (f"{_HF}.attention.v_proj", f"{_BLOCK}/attn/value"),
    (f"{_HF}.attention.out_proj", f"{_BLOCK}/attn/out"),
    (f"{_HF}.feed_forward.intermediate_dense", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.feed_forward.output_dense", f"{_BLOCK}/mlp/down"),
    ("projector", "pooler"),
    ("classifier", "head"),
    ("lm_head", "lm_head"),
)
_NORM = (
    (f"{_CONV}.layer_norm", "stem/convs/{c}/norm"),
    ("wav2vec2.feature_projection.layer_norm", "stem/norm"),
    ("wav2vec2.encoder.layer_norm", "positions/norm"),  # one tensor, in another place in either form
    ("wav2vec2.encoder.layer_norm", "norm"),
    (f"{_HF}.layer_norm", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.final_layer_norm", f"{_BLOCK}/mlp_norm"),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule("wav2vec2.masked_spec_embed", "stem/masked", SAME),
            Rule(f"{_POSITIONS}.parametrizations.weight.original0", "positions/gain", _GAIN),
            Rule(f"{_POSITIONS}.parametrizations.weight.original1", "positions/kernel", LINEAR),
            Rule(f"{_POSITIONS}.bias", "positions/bias", SAME),
            *(Rule(f"{name}.weight", f"{path}/kernel", LINEAR) for name, path in _LINEAR),
            *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in _LINEAR),
            *(Rule(f"{name}.weight", f"{path}/scale", SAME) for name, path in _NORM),
            *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in _NORM),
        ),
        prefix="wav2vec2.",
        # The names of PyTorch's first weight norm, in which most files are published.
        aliases=(
            (r"conv\.weight_g$", "conv.parametrizations.weight.original0"),
            (r"conv\.weight_v$", "conv.parametrizations.weight.original1"),
        ),
        ignored=(r"quantizer\..*", r"project_(hid|q)\..*"),
        optional=(r"wav2vec2\.masked_spec_embed", r"(projector|classifier|lm_head)\..*"),
    )
}
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
)
