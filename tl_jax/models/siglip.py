# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP (Zhai et al. 2023): images and texts in one space, every pair a question of its own; or its image tower alone.

    config = Config.from_published({"model_type": "siglip", "vision_config": {...}, "text_config": {...}})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"pixel_values": images, "input_ids": ids})
    outputs["logits_per_image"]                       # float[images, texts]

Checked against `transformers`' SiglipModel, SiglipVisionModel and SiglipForImageClassification. Texts are padded to the
full length, as in training: the last token's feature is theirs, padding or not. A task's head reads the image tower.
The text tower alone is the family `siglip_text`.
"""

# B batch, H height, W width in pixels, C channels, T tokens, D width

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.models import clip
from tl_jax.nn import towers
from tl_jax.nn.attention import attend, heads
from tl_jax.nn.functions import activation
from tl_jax.nn.linear import Linear
from tl_jax.nn.mlp import MLP
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.patches import Patches, images, tokens
from tl_jax.nn.prenorm import Norm
from tl_jax.weights.rules import CONV, SAME, Rule, Source, dense, norms, published_fields, split_rows

MODEL_TYPES = ("siglip", "siglip_vision_model")
INPUTS = ("pixel_values", "input_ids", "attention_mask")
POOLS = ("pooler", "mean")
HEADS = {"SiglipForImageClassification": ("classification", {"pool": "mean"})}


@dataclasses.dataclass(frozen=True)
class Vision:
    """Sizes and rates of the image tower, under their published names; `vision_use_head`: it has a pooling layer."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    vision_use_head: bool = True


@dataclasses.dataclass(frozen=True)
class Text:
    """Sizes and rates of the text tower, under their published names; `projection_size` None for its own width."""

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    projection_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of both towers.

    Attributes:
      joint: both towers are built; else the image tower alone.
    """

    vision: Vision = Vision()
    text: Text = Text()
    joint: bool = True

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`."""
        alone = data.get("model_type") == "siglip_vision_model"
        vision = published_fields(Vision, data if alone else data.get("vision_config") or {})
        text = published_fields(Text, data.get("text_config") or {})
        activation(vision.hidden_act), activation(text.hidden_act)
        if not alone and not vision.vision_use_head:
            raise UserError(
                "config.json", "vision_use_head is False, so that images have no feature to compare with texts"
            )
        return cls(vision, text, joint=not alone)

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
        """The image tower alone where a head reads it, and without the pooling layer where it reads another feature."""
        if not pool:
            return self
        vision = dataclasses.replace(self.vision, vision_use_head=pool == "pooler")
        return dataclasses.replace(self, vision=vision, joint=False)


class ImageEmbeddings(nnx.Module):
    """Patches as tokens, plus learned positions."""

    def __init__(self, config: Vision, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size
        self.patch = Patches(config.num_channels, width, config.patch_size, kernel_init=init, rngs=rngs)
        count = (config.image_size // config.patch_size) ** 2
        self.position = nnx.Param(init(rngs.params(), (count, width), jnp.float32))

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> float[B, T, D] in the parameters' dtype."""
        return tokens(self.patch(x_BHWC)) + self.position[...]


class ImagePool(nnx.Module):
    """A stage: attention of one learned query over the patches, then an MLP (Lee et al. 2019)."""

    def __init__(self, config: Vision, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size

        def linear():
            return Linear(width, width, kernel_init=init, rngs=rngs)

        self.probe = nnx.Param(init(rngs.params(), (1, 1, width), jnp.float32))
        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, kernel_init=init, rngs=rngs)
        self.num_heads = config.num_attention_heads

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state`, the same, and `pooler_output` float[B, D], `image_embeds` too."""
        probe_B1D = jnp.broadcast_to(self.probe[...], (x_BTD.shape[0], *self.probe.shape[1:]))
        pairs = ((self.query, probe_B1D), (self.key, x_BTD), (self.value, x_BTD))
        y_B1NH = attend(*(heads(layer(x), self.num_heads) for layer, x in pairs))
        y_BD = self.out(y_B1NH.reshape(probe_B1D.shape))[:, 0]
        y_BD = y_BD + self.mlp(self.norm(y_BD))
        return {"last_hidden_state": x_BTD, "pooler_output": y_BD, "image_embeds": y_BD}


class TextPool(nnx.Module):
    """A stage: the last token's feature, in the common space."""

    def __init__(self, config: Text, *, rngs: nnx.Rngs):
        width, init = config.hidden_size, nnx.initializers.normal(config.initializer_range)
        self.norm = LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.projection = Linear(width, config.projection_size or width, kernel_init=init, rngs=rngs)

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state`, normalised, and `pooler_output` float[B, D of images], which is
        `text_embeds` too."""
        x_BTD = self.norm(x_BTD)
        y_BD = self.projection(x_BTD[:, -1])
        return {"last_hidden_state": x_BTD, "pooler_output": y_BD, "text_embeds": y_BD}


class TextTower(nnx.Module):
    """The stages of the text chain, which runs first."""

    def __init__(self, config: Text, *, rngs: nnx.Rngs):
        self.stem = towers.TextEmbeddings(config, rngs=rngs)
        self.blocks = towers.blocks(config, rngs=rngs)
        self.pool = TextPool(config, rngs=rngs)


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` …, `norm` and, where the config has it, `pool` of the image tower; with the text tower,
    `text/stem`, `text/blocks/0` … and `text/pool` in a chain that comes before, and `similarity` at the end."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = ImageEmbeddings(config.vision, rngs=rngs)
        self.blocks = towers.blocks(config.vision, rngs=rngs)
        self.norm = Norm(config.vision.hidden_size, epsilon=config.vision.layer_norm_eps, rngs=rngs)
        names = ["stem", *(f"blocks/{i}" for i in range(len(self.blocks))), "norm"]
        if config.vision.vision_use_head:
            self.pool = ImagePool(config.vision, rngs=rngs)
            names.append("pool")
        chains = {"vision": tuple(names)}
        if config.joint:
            self.text = TextTower(config.text, rngs=rngs)
            scale, bias = jnp.full(1, jnp.log(10.0)), jnp.full(1, -10.0)
            self.similarity = towers.Similarity(scale, bias)
            texts = ("text/stem", *(f"text/blocks/{i}" for i in range(len(self.text.blocks))), "text/pool")
            chains = {"text": texts, "vision": (*names, "similarity")}
        self.chains = nnx.static(chains)
        self.reads = nnx.static({"vision": ("text",)} if config.joint else {})
        self.width = config.vision.hidden_size

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised; with the text tower also `input_ids` int[texts, T], and
        `attention_mask` where padding is not to be attended to (it is in the published training).

        Raises:
          UserError: images of another size or number of channels, texts missing or too long.
        """
        if chain == "vision":
            shared = {"text_embeds": done["text"]["text_embeds"]} if self.config.joint else {}
            return Carry(images(batch, self.config.image_size, self.config.num_channels), {}, shared)
        ids_BT, mask_BT = towers.texts(batch, self.config.text.max_position_embeddings)
        return Carry(ids_BT, {"attention_mask": mask_BT}, {})


_LINEAR = (
    ("vision_model.head.attention.out_proj", "pool/out"),
    ("vision_model.head.mlp.fc1", "pool/mlp/up"),
    ("vision_model.head.mlp.fc2", "pool/mlp/down"),
    ("text_model.head", "text/pool/projection"),
    ("classifier", "head"),
)
_NORM = (
    ("vision_model.post_layernorm", "norm"),
    ("vision_model.head.layernorm", "pool/norm"),
)
_QKV, _MAP = ("pool/query", "pool/key", "pool/value"), "vision_model.head.attention"
SOURCES = {
    "hf": Source(
        rules=(
            Rule("vision_model.embeddings.patch_embedding.weight", "stem/patch/kernel", CONV),
            Rule("vision_model.embeddings.patch_embedding.bias", "stem/patch/bias", SAME),
            Rule("vision_model.embeddings.position_embedding.weight", "stem/position", SAME),
            *clip.tower("vision_model.encoder.layers.{i}", "blocks/{i}"),
            Rule("vision_model.head.probe", "pool/probe", SAME),
            Rule(f"{_MAP}.in_proj_weight", tuple(f"{path}/kernel" for path in _QKV), split_rows(3)),
            Rule(f"{_MAP}.in_proj_bias", tuple(f"{path}/bias" for path in _QKV), split_rows(3)),
            *clip.texts("text/"),
            Rule("logit_scale", "similarity/scale", SAME),
            Rule("logit_bias", "similarity/bias", SAME),
            *dense(_LINEAR),
            *norms(_NORM),
        ),
        prefix="vision_model.",
        ignored=(r".*\.position_ids",),
        optional=(r"text_model\..*", r"vision_model\.head\..*", r"logit_(scale|bias)", r"classifier\..*"),
    )
}
RESIZE = clip.RESIZE
SHARDING = (
    *clip.SHARDING,
    (r"pool/(query|key|value|mlp/up)/kernel", (None, "tensor")),
    (r"pool/(query|key|value|mlp/up)/bias", ("tensor",)),
    (r"pool/(out|mlp/down)/kernel", ("tensor", None)),
)
