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
from tl_jax.weights.rules import LINEAR, SAME, Layout, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("wav2vec2",)
INPUTS = ("input_values", "attention_mask")
POOLS = ("mean", "pooler")
HEADS = {
    "Wav2Vec2ForSequenceClassification": ("classification", {"pool": "pooler"}),
    "Wav2Vec2ForCTC": ("ctc", {}),
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


def source(kind: str, rows: tuple[Rule, ...] = ()) -> Source:
    """The key map of the networks of this form, whose names differ in what they begin with.

    Args:
      kind: `wav2vec2`, `hubert` or `wavlm`.
      rows: what only this kind has.
    """
    theirs, ours = f"{kind}.encoder.layers.{{i}}", "blocks/{i}"
    conv, positions = f"{kind}.feature_extractor.conv_layers.{{c}}", f"{kind}.encoder.pos_conv_embed.conv"
    linear = (
        (f"{conv}.conv", "stem/convs/{c}/conv"),
        (f"{kind}.feature_projection.projection", "stem/projection"),
        (f"{theirs}.attention.q_proj", f"{ours}/attn/query"),
        (f"{theirs}.attention.k_proj", f"{ours}/attn/key"),
        (f"{theirs}.attention.v_proj", f"{ours}/attn/value"),
        (f"{theirs}.attention.out_proj", f"{ours}/attn/out"),
        (f"{theirs}.feed_forward.intermediate_dense", f"{ours}/mlp/up"),
        (f"{theirs}.feed_forward.output_dense", f"{ours}/mlp/down"),
        ("projector", "pooler"),
        ("classifier", "head"),
        ("lm_head", "lm_head"),
    )
    norm = (
        (f"{conv}.layer_norm", "stem/convs/{c}/norm"),
        (f"{kind}.feature_projection.layer_norm", "stem/norm"),
        (f"{kind}.encoder.layer_norm", "positions/norm"),  # one tensor, in another place in either form
        (f"{kind}.encoder.layer_norm", "norm"),
        (f"{theirs}.layer_norm", f"{ours}/attn_norm"),
        (f"{theirs}.final_layer_norm", f"{ours}/mlp_norm"),
    )
    return Source(
        rules=(
            Rule(f"{kind}.masked_spec_embed", "stem/masked", SAME),
            Rule(f"{positions}.parametrizations.weight.original0", "positions/gain", _GAIN),
            Rule(f"{positions}.parametrizations.weight.original1", "positions/kernel", LINEAR),
            Rule(f"{positions}.bias", "positions/bias", SAME),
            *rows,
            *dense(linear),
            *norms(norm),
        ),
        prefix=f"{kind}.",
        # The names of PyTorch's first weight norm, in which most files are published.
        aliases=(
            (r"conv\.weight_g$", "conv.parametrizations.weight.original0"),
            (r"conv\.weight_v$", "conv.parametrizations.weight.original1"),
        ),
        # The quantizer of pretraining.
        ignored=(r"quantizer\..*", r"project_(hid|q)\..*"),
        optional=(rf"{kind}\.masked_spec_embed", r"(projector|classifier|lm_head)\..*"),
    )


SOURCES = {"hf": source("wav2vec2")}
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
)
