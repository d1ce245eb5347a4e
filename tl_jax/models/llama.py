# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Llama and the decoders of its form, Mistral, Qwen2 and Qwen3, as readers and writers of texts (Touvron et al. 2023).

    config = Config.from_published({"model_type": "llama", "hidden_size": 4096, ...})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_ids": ids, "attention_mask": mask})

Pre-norm causal decoder with rotary positions and fewer heads of keys than of queries, checked against `transformers`'
LlamaModel and its relatives. Texts are padded on the right.
"""

# B batch, T time, D width, N heads, K heads of keys, H width of a head

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn import segments
from tl_jax.nn.attention import attend, heads
from tl_jax.nn.embed import Embed
from tl_jax.nn.functions import activation, keys
from tl_jax.nn.gated import GatedMLP, RMSNorm
from tl_jax.nn.linear import Linear
from tl_jax.nn.residual import drop_path
from tl_jax.nn.rope import Rope, rotate, tables, turns
from tl_jax.nn.words import Words
from tl_jax.weights.rules import LINEAR, SAME, Rule, Source, dense, published_fields

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
INPUTS = ("input_ids", "attention_mask", "segments")
POOLS = ("last", "mean")
_SCORE = ("classification", {"pool": "last", "bias": False})
_NAMES = ("Llama", "Mistral", "Qwen2", "Qwen3")
HEADS = {
    **{f"{name}ForCausalLM": ("language_model", {}) for name in _NAMES},
    **{f"{name}ForSequenceClassification": _SCORE for name in _NAMES},
}

# What a kind says when its `config.json` does not, and what it has whatever that says.
_DEFAULTS = {"mistral": {"num_key_value_heads": 8, "sliding_window": 4096}, "qwen3": {"head_dim": 128}}
_FIXED = {
    "llama": {"qkv_bias": False, "qk_norm": False, "use_sliding_window": False},
    "mistral": {"attention_bias": False, "qkv_bias": False, "mlp_bias": False, "qk_norm": False},
    "qwen2": {"attention_bias": False, "qkv_bias": True, "mlp_bias": False, "qk_norm": False},
    "qwen3": {"qkv_bias": False, "mlp_bias": False, "qk_norm": True},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and rates, under their published names where there is one.

    Attributes:
      num_key_value_heads: as many as `num_attention_heads` where None.
      head_dim: the width divided by the heads where None.
      attention_bias: of queries, keys, values and the output; `qkv_bias` of the first three.
      qk_norm: queries and keys are normalised, head by head.
      windows: of each block, how many tokens it looks back over, its own included; None for all.
      rope: the rotary positions.
      tie_word_embeddings: whether the layer that predicts words is the embedding once more.
      lm_head: whether that layer is built.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    rope: Rope = Rope()
    tie_word_embeddings: bool = False
    lm_head: bool = False

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`, of any of the kinds."""
        kind = data.get("model_type", "llama")
        data = {**_DEFAULTS.get(kind, {}), **data, **_FIXED[kind], "windows": (), "rope": {}}
        config = published_fields(cls, data, {"partial_rotary_factor": (1.0, None)})
        activation(config.hidden_act)
        windows = _windows(kind, data, config.num_hidden_layers)
        return dataclasses.replace(config, windows=windows, rope=_rope(data, config.max_position_embeddings))

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"i": i} for i in range(self.num_hidden_layers)]

    def without(self, pool: str) -> "Config":
        """With the layer that predicts words where this is `lm_head`, and else without."""
        return dataclasses.replace(self, lm_head=pool == "lm_head")

    @property
    def head_width(self) -> int:
        """Of queries, keys and values."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


def _windows(kind: str, data: Mapping[str, Any], count: int) -> tuple[int | None, ...]:
    window = data.get("sliding_window", 4096)
    if kind == "mistral":
        return (window,) * count
    first = data.get("max_window_layers", 28)
    types = data.get("layer_types") or [("full", "sliding")[i >= first] + "_attention" for i in range(count)]
    used = data.get("use_sliding_window", False)
    return tuple(window if used and kind == "sliding_attention" else None for kind in types)


def _rope(data: Mapping[str, Any], length: int) -> Rope:
    """From `rope_parameters`, or from the older `rope_scaling` and `rope_theta`."""
    given = data.get("rope_parameters") or data.get("rope_scaling") or {}
    given = {name: value for name, value in given.items() if value is not None}
    original = data.get("original_max_position_embeddings") or given.get("original_max_position_embeddings", length)
    fields = {
        "rope_theta": data.get("rope_theta", 10000.0),
        "rope_type": given.get("type", "default"),
        "factor": length / original,
        **given,
        "original_max_position_embeddings": original,
    }
    refused = {"partial_rotary_factor": (1.0,), "mscale": (None,), "mscale_all_dim": (None,)}
    return published_fields(Rope, fields, refused)


class Embeddings(nnx.Module):
    """Word embeddings."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        self.word = Embed(config.vocab_size, config.hidden_size, embedding_init=init, rngs=rngs)

    def __call__(self, ids_BT: jax.Array, context: Context):
        """int[B, T] -> float[B, T, D]."""
        return self.word(ids_BT)


class Attention(nnx.Module):
    """Causal attention with rotary positions over `window` tokens, or all."""

    def __init__(self, config: Config, window: int | None, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.head_width

        def linear(inputs, outputs, bias):
            return Linear(inputs, outputs, use_bias=bias, kernel_init=init, rngs=rngs)

        def norm():
            return RMSNorm(width, epsilon=config.rms_norm_eps, rngs=rngs) if config.qk_norm else None

        self.num_heads = config.num_attention_heads
        self.num_key_heads = config.num_key_value_heads or self.num_heads
        bias = config.attention_bias or config.qkv_bias
        self.query = linear(config.hidden_size, self.num_heads * width, bias)
        self.key = linear(config.hidden_size, self.num_key_heads * width, bias)
        self.value = linear(config.hidden_size, self.num_key_heads * width, bias)
        self.out = linear(self.num_heads * width, config.hidden_size, config.attention_bias)
        self.query_norm, self.key_norm = norm(), norm()
        self.window, self.dropout, self.rope = window, config.attention_dropout, config.rope

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        q_BTNH = heads(self.query(x_BTD), self.num_heads)
        k_BTKH, v_BTKH = heads(self.key(x_BTD), self.num_key_heads), heads(self.value(x_BTD), self.num_key_heads)
        if self.query_norm is not None:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        cos_TH, sin_TH = context.shared["cos"], context.shared["sin"]
        if context.memory is not None:
            cos_TH, sin_TH = turns(self.rope, q_BTNH.shape[-1], context.memory.places_BT)
        y_BTNH = attend(
            rotate(q_BTNH, cos_TH, sin_TH),
            rotate(k_BTKH, cos_TH, sin_TH),
            v_BTKH,
            context.batch["attention_mask"],
            causal=True,
            window=self.window,
            rate=self.dropout,
            key=context.key,
            memory=context.memory,
        )
        return self.out(y_BTNH.reshape(*x_BTD.shape[:2], -1))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and followed by a residual sum."""

    def __init__(self, config: Config, window: int | None, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size
        self.attn_norm = RMSNorm(width, epsilon=config.rms_norm_eps, rngs=rngs)
        self.attn = Attention(config, window, rngs=rngs)
        self.mlp_norm = RMSNorm(width, epsilon=config.rms_norm_eps, rngs=rngs)
        hidden = config.intermediate_size
        self.mlp = GatedMLP(width, hidden, config.hidden_act, bias=config.mlp_bias, kernel_init=init, rngs=rngs)
        self.drop_path = 0.0

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        drop_attn, drop_mlp = keys(context.key, 2)
        x_BTD = x_BTD + drop_path(self.attn(self.attn_norm(x_BTD), context), self.drop_path, drop_attn)
        return x_BTD + drop_path(self.mlp(self.mlp_norm(x_BTD)), self.drop_path, drop_mlp)


class Norm(RMSNorm):
    """The norm after the last block, as a stage."""

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> float[B, T, D]."""
        return super().__call__(x_BTD)


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … and `norm`, and `lm_head` where the config has one."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Embeddings(config, rngs=rngs)
        self.blocks = nnx.List([Block(config, window, rngs=rngs) for window in config.windows])
        self.norm = Norm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(config.num_hidden_layers)), "norm")})
        self.width = config.hidden_size
        if config.lm_head:
            tied = "stem/word/embedding" if config.tie_word_embeddings else None
            init = nnx.initializers.normal(config.initializer_range)
            self.add_stage("lm_head", Words(self.width, config.vocab_size, tied=tied, kernel_init=init, rngs=rngs))

    def begin(self, chain, batch, done) -> Carry:
        """`input_ids` int[B, T]; `attention_mask` (default: all ones) may be absent, or give way to `segments`, see
        `nn.segments`.

        Raises:
          UserError: more tokens than the network was made for, segments that cannot be told apart.
        """
        ids_BT = batch["input_ids"]
        length, limit = ids_BT.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise UserError("input_ids", f"has {length} tokens, the network has {limit} positions", "cut them")
        cos_TH, sin_TH = tables(self.config.rope, self.config.head_width, length)
        # Rotary positions count by their differences alone, so those of the row serve every text in it.
        mask, _ = segments.read(batch, self.chains[chain][-1])
        return Carry(ids_BT, {"attention_mask": mask}, {"cos": cos_TH, "sin": sin_TH})


_HF, _BLOCK = "model.layers.{i}", "blocks/{i}"
_LINEAR = (  # (name in the file, path), for weight and bias alike
    (f"{_HF}.self_attn.q_proj", f"{_BLOCK}/attn/query"),
    (f"{_HF}.self_attn.k_proj", f"{_BLOCK}/attn/key"),
    (f"{_HF}.self_attn.v_proj", f"{_BLOCK}/attn/value"),
    (f"{_HF}.self_attn.o_proj", f"{_BLOCK}/attn/out"),
    (f"{_HF}.mlp.gate_proj", f"{_BLOCK}/mlp/gate"),
    (f"{_HF}.mlp.up_proj", f"{_BLOCK}/mlp/up"),
    (f"{_HF}.mlp.down_proj", f"{_BLOCK}/mlp/down"),
)
_NORM = (
    (f"{_HF}.input_layernorm", f"{_BLOCK}/attn_norm"),
    (f"{_HF}.self_attn.q_norm", f"{_BLOCK}/attn/query_norm"),
    (f"{_HF}.self_attn.k_norm", f"{_BLOCK}/attn/key_norm"),
    (f"{_HF}.post_attention_layernorm", f"{_BLOCK}/mlp_norm"),
    ("model.norm", "norm"),
)
SOURCES = {
    "hf": Source(
        rules=(
            Rule("model.embed_tokens.weight", "stem/word/embedding", SAME),
            *dense(_LINEAR),
            *(Rule(f"{name}.weight", f"{path}/scale", SAME) for name, path in _NORM),
            Rule("score.weight", "head/kernel", LINEAR),
            Rule("lm_head.weight", "lm_head/kernel", LINEAR),
        ),
        prefix="model.",
        ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"lm_head\..*"),
        optional=(r"score\..*",),
    )
}
RESIZE = (("stem/word/embedding", "vocabulary", ("vocab_size",)),)  # see `weights.surgery`
SHARDING = (
    (r"blocks/\d+/(attn/(query|key|value)|mlp/(gate|up))/kernel", (None, "tensor")),
    (r"blocks/\d+/(attn/(query|key|value)|mlp/(gate|up))/bias", ("tensor",)),
    (r"blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
    (r"stem/word/embedding", ("tensor", None)),
    (r"lm_head/kernel", (None, "tensor")),
)
