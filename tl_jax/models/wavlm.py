# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""WavLM (Chen et al. 2021): the form of wav2vec 2.0, with relative positions that each query opens and closes.

    config = Config.from_published({"model_type": "wavlm", "hidden_size": 768, ...})
    model = Backbone(config, rngs=nnx.Rngs(0))
    outputs = model({"input_values": samples, "attention_mask": mask})

Encoder of waveforms at 16 kHz, a frame every 20 ms, checked against `transformers`' WavLMModel.
"""

# B batch, T queries, S keys, N heads, H width of a head, D width

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tl_jax.core.chain import Carry, Context
from tl_jax.models import wav2vec2
from tl_jax.nn import waves
from tl_jax.nn.attention import SelfAttention, attend, heads
from tl_jax.nn.embed import Embed
from tl_jax.nn.linear import Linear
from tl_jax.weights.rules import SAME, Layout, Rule, dense, published_fields

MODEL_TYPES = ("wavlm",)
INPUTS = ("input_values", "attention_mask")
POOLS = ("mean", "pooler")
HEADS = {
    "WavLMForSequenceClassification": ("classification", {"pool": "pooler"}),
    "WavLMForCTC": ("ctc", {}),
}


@dataclasses.dataclass(frozen=True)
class Config(waves.Sizes):
    """Sizes and rates, under their published names; see `waves.Sizes`.

    Attributes:
      num_buckets: how many distances have a bias of their own, both directions together.
      max_bucket_distance: frames from which on all distances share the last one.
    """

    num_buckets: int = 320
    max_bucket_distance: int = 800

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        refused = {"add_adapter": (False, None), "use_weighted_layer_sum": (False, None)}
        return published_fields(cls, data, refused).checked()


class Attention(SelfAttention):
    """Self-attention with a bias by distance, which a gate scales for every query and head."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, num_heads = config.hidden_size, config.num_attention_heads
        init = nnx.initializers.normal(config.initializer_range)
        super().__init__(width, num_heads, dropout=config.attention_dropout, kernel_init=init, rngs=rngs)
        self.relative = Embed(config.num_buckets, num_heads, embedding_init=init, rngs=rngs)
        self.gate = Linear(width // num_heads, 8, kernel_init=init, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(num_heads))

    def __call__(self, x_BTD, mask_BS, key, bucket_TS):
        """float[B, T, D] -> float[B, T, D].

        Args:
          mask_BS: int[B, S]; keys at 0 are not attended to.
          key: for dropout of attention weights, or None.
          bucket_TS: int[T, S], the bucket of every distance.
        """

        q_BTNH = heads(self.query(x_BTD), self.num_heads)
        k_BSNH, v_BSNH = heads(self.key(x_BTD), self.num_heads), heads(self.value(x_BTD), self.num_heads)
        # Two gates a query and head, each a sum of four projections of what enters the layer.
        gates = self.gate(heads(x_BTD, self.num_heads)).reshape(*q_BTNH.shape[:3], 2, 4).sum(axis=-1)
        gates = jax.nn.sigmoid(gates)
        gate_BTN = gates[..., 0] * (gates[..., 1] * self.gain[...] - 1) + 2
        bias_BNTS = jnp.einsum("btn,tsn->bnts", gate_BTN, self.relative(bucket_TS))
        y_BTNH = attend(q_BTNH, k_BSNH, v_BSNH, mask_BS, bias=bias_BNTS, rate=self.dropout, key=key)
        return self.out(y_BTNH.reshape(x_BTD.shape))


class Block(waves.Block):
    """The usual block with gated attention; all share the first one's biases by distance."""

    def __init__(self, config: Config, number: int, *, rngs: nnx.Rngs):
        super().__init__(config, Attention(config, rngs=rngs), rngs=rngs)
        path = "attn/relative/embedding"
        self.tied = nnx.static({path: f"blocks/0/{path}"} if number else {})

    def attend(self, x_BTD, context: Context, key):
        """float[B, T, D] -> float[B, T, D]."""
        return self.attn(x_BTD, context.batch["attention_mask"], key, context.shared["buckets"])


class Backbone(waves.Encoder):
    """Stages `stem`, `positions`, `blocks/0` …, `norm` in the pre-norm form, and `pooler` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        blocks = [Block(config, number, rngs=rngs) for number in range(config.num_hidden_layers)]
        super().__init__(config, blocks, rngs=rngs)

    def begin(self, chain, batch, done) -> Carry:
        """As every encoder of waveforms, and the bucket of every distance between frames."""
        carry = super().begin(chain, batch, done)
        frames_T = np.arange(carry.batch["attention_mask"].shape[1])
        bucket = buckets(frames_T[-1], self.config.num_buckets, self.config.max_bucket_distance)
        distance_TS = jnp.asarray(frames_T) - jnp.asarray(frames_T)[:, None]
        return carry._replace(shared={"buckets": jnp.asarray(bucket)[distance_TS + frames_T[-1]]})


def buckets(farthest: int, count: int, limit: int) -> np.ndarray:
    """int32[2 * farthest + 1], the bucket of the distances -farthest .. farthest.

    Half of the `count` buckets is for either direction; half of those is for one distance each, the others widen as
    the logarithm up to the distance `limit`.
    """
    distance = np.arange(-farthest, farthest + 1)
    half, exact = count // 2, count // 4
    with np.errstate(divide="ignore"):
        wide = np.log(np.abs(distance).astype(np.float32) / exact) / math.log(limit / exact) * (half - exact)
    wide = exact + np.maximum(wide, 0).astype(np.int32)
    near = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(wide, half - 1))
    return (near + half * (distance > 0)).astype(np.int32)


_HEADS = Layout("flat", lambda tensors: (tensors[0].reshape(-1),), lambda params: (params[0].reshape(1, -1, 1, 1),))
_ATTENTION = "wavlm.encoder.layers.{i}.attention"
SOURCES = {
    "hf": wav2vec2.source(
        "wavlm",
        (
            Rule("wavlm.encoder.layers.0.attention.rel_attn_embed.weight", "blocks/0/attn/relative/embedding", SAME),
            Rule(f"{_ATTENTION}.gru_rel_pos_const", "blocks/{i}/attn/gain", _HEADS),
            *dense(((f"{_ATTENTION}.gru_rel_pos_linear", "blocks/{i}/attn/gate"),)),
        ),
    )
}
SHARDING = wav2vec2.SHARDING
