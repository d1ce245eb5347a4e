# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLIP (Radford et al. 2021): images and texts in one space, and its image tower alone.

    config = Config.from_published({"model_type": "clip", "vision_config": {...}, "text_config": {...}})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images, "input_ids": ids})
    outputs["logits_per_image"]                       # float[images, texts]

Checked against `transformers`' CLIPModel, CLIPVisionModel (with its projection too) and CLIPForImageClassification. A
task's head reads the image tower; the text tower is left out then. The text tower alone is the family `clip_text`.
"""

# B batch, H height, W width in pixels, C channels, T tokens, D width, P width of the common space

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.nn import towers
from tl_jax.nn.functions import activation
from tl_jax.nn.linear import Linear
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.patches import Patches, images, tokens
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, dense, norms, published_fields

MODEL_TYPES = ("clip", "clip_vision_model")
INPUTS = ("pixel_values", "input_ids", "attention_mask")
POOLS = ("pooler", "cls", "mean")
HEADS = {"CLIPForImageClassification": ("classification", {"pool": "pooler"})}


@dataclasses.dataclass(frozen=True)
class Vision:
    """Sizes and rates of the image tower, under their published names."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02


@dataclasses.dataclass(frozen=True)
class Text:
    """Sizes and rates of the text tower, under their published names; a text's feature is that of `eos_token_id`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of both towers.

    Attributes:
      joint: both towers are built; else the image tower alone.
      projected: the image tower alone has a feature in the common space.
      projection_dim: of the common space.
      patch_mean: the pooled feature is the mean over patches, as the published classifier has it, instead of the
        normalised class token.
    """

    vision: Vision = Vision()
    text: Text = Text()
    joint: bool = True
    projected: bool = False
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    patch_mean: bool = False

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        alone = data.get("model_type") == "clip_vision_model"
        vision = published_fields(Vision, data if alone else data.get("vision_config") or {})
        text = published_fields(Text, data.get("text_config") or {})
        activation(vision.hidden_act), activation(text.hidden_act)
        config = published_fields(cls, {name: data[name] for name in _OWN if name in data})
        named = data.get("architectures") or ()
        classifier = "CLIPForImageClassification" in named
        return dataclasses.replace(
            config,
            vision=vision,
            text=text,
            joint=not alone and not classifier,
            projected="CLIPVisionModelWithProjection" in named,
            patch_mean=classifier,
        )

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.vision.image_size

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return self.vision.num_channels

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map: `i` counts blocks of the image tower, `t` those of the text."""
        counts = self.vision.num_hidden_layers, self.text.num_hidden_layers
        return [{"i": i % counts[0], "t": i % counts[1]} for i in range(max(counts))]

    def without(self, pool: str) -> "Config":
        """The image tower alone where a head reads it."""
        return dataclasses.replace(self, joint=False, projected=False) if pool else self


_OWN = ("projection_dim", "logit_scale_init_value")


class ImageEmbeddings(nnx.Module):
    """Patches as tokens behind a class token, plus learned positions, normalised."""

    def __init__(self, config: Vision, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size
        self.patch = Patches(config.num_channels, width, config.patch_size, bias=False, kernel_init=init, rngs=rngs)
        self.cls = nnx.Param(init(rngs.params(), (width,), jnp.float32))
        count = 1 + (config.image_size // config.patch_size) ** 2
        self.position = nnx.Param(init(rngs.params(), (count, width), jnp.float32))
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> float[B, T, D] in the parameters' dtype."""
        return self.norm(tokens(self.patch(x_BHWC), self.cls[...][None, None]) + self.position[...])


class ImagePool(nnx.Module):
    """The image's feature, and its projection into the common space."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.vision.hidden_size
        self.norm = LayerNorm(width, epsilon=config.vision.layer_norm_eps, rngs=rngs)
        built = config.joint or config.projected
        self.projection = _projection(width, config.projection_dim, rngs) if built else None
        self.patch_mean = config.patch_mean

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state`, the same; `pooler_output` float[B, D]; `image_embeds` float[B, P]."""
        pooled_BD = x_BTD[:, 1:].mean(axis=1) if self.patch_mean else self.norm(x_BTD[:, 0])
        outputs = {"last_hidden_state": x_BTD, "pooler_output": pooled_BD}
        return outputs if self.projection is None else {**outputs, "image_embeds": self.projection(pooled_BD)}


class TextPool(nnx.Module):
    """The feature of the text's end, and its projection into the common space; none where `projection_dim` is None."""

    def __init__(self, config: Text, projection_dim: int | None, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.projection = None if projection_dim is None else _projection(width, projection_dim, rngs)

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state`, normalised; `pooler_output` float[B, D]; `text_embeds` float[B, P];
        `end` int[B] of the batch says which token ends each text."""
        x_BTD = self.norm(x_BTD)
        end_BD = jnp.take_along_axis(x_BTD, context.batch["end"][:, None, None], axis=1)[:, 0]
        outputs = {"last_hidden_state": x_BTD, "pooler_output": end_BD}
        return outputs if self.projection is None else {**outputs, "text_embeds": self.projection(end_BD)}


class TextTower(nnx.Module):
    """The stages of the text chain, which runs first."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.stem = towers.TextEmbeddings(config.text, rngs=rngs)
        self.blocks = towers.blocks(config.text, causal=True, rngs=rngs)
        self.pool = TextPool(config.text, config.projection_dim, rngs=rngs)


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` … and `pool` of the image tower; with the text tower, the same under `text/` in a chain
    that comes before, and `similarity` at the end."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = ImageEmbeddings(config.vision, rngs=rngs)
        self.blocks = towers.blocks(config.vision, rngs=rngs)
        self.pool = ImagePool(config, rngs=rngs)
        names = ("stem", *(f"blocks/{i}" for i in range(len(self.blocks))), "pool")
        chains = {"vision": names}
        if config.joint:
            self.text = TextTower(config, rngs=rngs)
            scale = jnp.asarray(config.logit_scale_init_value, jnp.float32)
            self.similarity = towers.Similarity(scale)
            texts = ("text/stem", *(f"text/blocks/{i}" for i in range(len(self.text.blocks))), "text/pool")
            chains = {"text": texts, "vision": (*names, "similarity")}
        self.chains = nnx.static(chains)
        self.reads = nnx.static({"vision": ("text",)} if config.joint else {})
        self.width = config.vision.hidden_size

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised; with the text tower also `input_ids` int[texts, T] and, where
        texts are padded, `attention_mask`.

        Raises:
          UserError: images of another size or number of channels, texts missing or too long.
        """
        if chain == "vision":
            shared = {"text_embeds": done["text"]["text_embeds"]} if self.config.joint else {}
            return Carry(images(batch, self.config.image_size, self.config.num_channels), {}, shared)
        return begin_texts(batch, self.config.text)


def begin_texts(batch, config: Text) -> Carry:
    """What enters the first stage of the text tower; see `towers.texts`."""
    ids_BT, mask_BT = towers.texts(batch, config.max_position_embeddings)
    return Carry(ids_BT, {"attention_mask": mask_BT, "end": ends(ids_BT, config.eos_token_id)}, {})


def ends(ids_BT, eos_token_id: int):
    """int[B]: where each text ends, at the first `eos_token_id`.

    The first published files say 2, which is not the id that their tokenizer ends texts with; that is the largest.
    """
    return jnp.argmax(ids_BT if eos_token_id == 2 else ids_BT == eos_token_id, axis=1)


def _projection(width: int, projection_dim: int, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(width**-0.5)
    return Linear(width, projection_dim, use_bias=False, kernel_init=init, rngs=rngs)


def tower(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The key map of a tower's blocks; `theirs` and `ours` are what a block's names begin with."""
    linear = (
        (f"{theirs}.self_attn.q_proj", f"{ours}/attn/query"),
        (f"{theirs}.self_attn.k_proj", f"{ours}/attn/key"),
        (f"{theirs}.self_attn.v_proj", f"{ours}/attn/value"),
        (f"{theirs}.self_attn.out_proj", f"{ours}/attn/out"),
        (f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        (f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
    )
    norm = ((f"{theirs}.layer_norm1", f"{ours}/attn_norm"), (f"{theirs}.layer_norm2", f"{ours}/mlp_norm"))
    return (*dense(linear), *norms(norm))


def texts(ours: str) -> tuple[Rule, ...]:
    """The key map of the text tower but for its projection; `ours` is what the paths begin with, `text/` or nothing."""
    return (
        Rule("text_model.embeddings.token_embedding.weight", f"{ours}stem/word/embedding", SAME),
        Rule("text_model.embeddings.position_embedding.weight", f"{ours}stem/position/embedding", SAME),
        *tower("text_model.encoder.layers.{t}", f"{ours}blocks/{{t}}"),
        *norms((("text_model.final_layer_norm", f"{ours}pool/norm"),)),
    )


_NORM = (("vision_model.pre_layrnorm", "stem/norm"), ("vision_model.post_layernorm", "pool/norm"))
SOURCES = {
    "hf": Source(
        rules=(
            Rule("vision_model.embeddings.class_embedding", "stem/cls", SAME),
            Rule("vision_model.embeddings.patch_embedding.weight", "stem/patch/kernel", CONV),
            Rule("vision_model.embeddings.position_embedding.weight", "stem/position", SAME),
            *tower("vision_model.encoder.layers.{i}", "blocks/{i}"),
            Rule("visual_projection.weight", "pool/projection/kernel", LINEAR),
            *texts("text/"),
            Rule("text_projection.weight", "text/pool/projection/kernel", LINEAR),
            Rule("logit_scale", "similarity/scale", SAME),
            *norms(_NORM),
            Rule("classifier.weight", "head/kernel", LINEAR),
            Rule("classifier.bias", "head/bias", SAME),
        ),
        prefix="vision_model.",
        ignored=(r".*\.position_ids",),
        optional=(r"text_model\..*", r"(visual|text)_projection\.weight", r"logit_scale", r"classifier\..*"),
    )
}
RESIZE = (  # (path, how, published fields that ask for it); see `weights.surgery`
    ("stem/position", "grid", ("image_size", "patch_size", "vision_config")),
    ("stem/patch/kernel", "patch", ("patch_size", "vision_config")),
    ("stem/patch/kernel", "channels", ("num_channels", "vision_config")),
    ("text/stem/word/embedding", "vocabulary", ("text_config",)),
)
SHARDING = (
    (r"(text/)?blocks/\d+/(attn/(query|key|value)|mlp/up)/kernel", (None, "tensor")),
    (r"(text/)?blocks/\d+/(attn/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"(text/)?blocks/\d+/(attn/out|mlp/down)/kernel", ("tensor", None)),
    (r"(text/)?stem/word/embedding", ("tensor", None)),
)
