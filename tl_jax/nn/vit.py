# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What ViT (Dosovitskiy et al. 2020) and DeiT (Touvron et al. 2020) share: all but the tokens before the patches.

A family adds its Config and key map.
"""

# B batch, H height, W width in pixels, C channels, T tokens, D width

import dataclasses
from typing import Self

import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn.functions import dropout
from tl_jax.nn.norm import LayerNorm
from tl_jax.nn.patches import Patches, images, tokens
from tl_jax.nn.pooling import Pooler
from tl_jax.nn.prenorm import Block, Norm


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes and rates, under their published names.

    Attributes:
      global_pool: what the pooled feature is: "" for a layer over the class token, as `transformers` has it; in `timm`
        the class token (`token`) or the mean over the patches (`avg`).
      fc_norm: the last norm stands behind that mean, not before it.
      pooler: whether the pooled feature is built.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    global_pool: str = ""
    fc_norm: bool = False
    pooler: bool = True

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map."""
        return [{"i": i} for i in range(self.num_hidden_layers)]

    def without(self, pool: str) -> Self:
        """Without what a head with this pooling does not read.

        Raises:
          UserError: a head over tokens which this network never normalises.
        """
        if self.fc_norm and pool not in ("", "pooler"):
            raise UserError(
                "task.options.pool",
                f"is {pool!r}, but the last norm of this network stands behind the mean over the patches",
                "set task.options.pool=pooler",
            )
        return dataclasses.replace(self, pooler=pool == "pooler")


class Embeddings(nnx.Module):
    """A stage: patches as tokens behind learned ones, plus learned positions.

    Args:
      first: names of the learned tokens, in their order.
    """

    def __init__(self, config: Sizes, first: tuple[str, ...], *, rngs: nnx.Rngs):
        init, width = nnx.initializers.truncated_normal(config.initializer_range), config.hidden_size
        self.patch = Patches(config.num_channels, width, config.patch_size, kernel_init=init, rngs=rngs)
        for name in first:
            setattr(self, name, nnx.Param(init(rngs.params(), (1, 1, width), jnp.float32)))
        count = len(first) + (config.image_size // config.patch_size) ** 2
        self.position = nnx.Param(init(rngs.params(), (1, count, width), jnp.float32))
        self.first, self.dropout = first, config.hidden_dropout_prob

    def __call__(self, x_BHWC, context: Context):
        """float[B, H, W, C] -> float[B, T, D] in the parameters' dtype."""
        x_BTD = tokens(self.patch(x_BHWC), *(getattr(self, name)[...] for name in self.first)) + self.position[...]
        return dropout(x_BTD, self.dropout, context.key)


class TimmPooler(nnx.Module):
    """A stage: the class token or the mean over the patches, then the norm where it stands here.

    Args:
      first: how many tokens stand before the patches.
    """

    def __init__(self, config: Sizes, first: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs) if config.fc_norm else None
        self.mean, self.first = config.global_pool == "avg", first

    def __call__(self, x_BTD, context: Context):
        """float[B, T, D] -> `last_hidden_state`, the same, and `pooler_output` float[B, D]."""
        pooled_BD = x_BTD[:, self.first :].mean(axis=1) if self.mean else x_BTD[:, 0]
        pooled_BD = pooled_BD if self.norm is None else self.norm(pooled_BD)
        return {"last_hidden_state": x_BTD, "pooler_output": pooled_BD}


class Encoder(chain.Backbone):
    """Stages `stem`, `blocks/0` …, `norm` unless it stands behind the mean, and `pooler` where the config has one."""

    def __init__(self, config: Sizes, first: tuple[str, ...], *, rngs: nnx.Rngs):
        width = config.hidden_size
        init = nnx.initializers.truncated_normal(config.initializer_range)
        self.config = config
        self.stem = Embeddings(config, first, rngs=rngs)
        blocks = [
            Block(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_act,
                epsilon=config.layer_norm_eps,
                bias=config.qkv_bias,
                dropout=config.hidden_dropout_prob,
                attention_dropout=config.attention_probs_dropout_prob,
                kernel_init=init,
                rngs=rngs,
            )
            for _ in range(config.num_hidden_layers)
        ]
        self.blocks = nnx.List(blocks)
        names = ["stem", *(f"blocks/{i}" for i in range(len(blocks)))]
        if not config.fc_norm:
            self.norm = Norm(width, epsilon=config.layer_norm_eps, rngs=rngs)
            names.append("norm")
        if config.pooler:
            if config.global_pool:
                self.pooler = TimmPooler(config, len(first), rngs=rngs)
            else:
                self.pooler = Pooler(width, width, kernel_init=init, rngs=rngs)
            names.append("pooler")
        self.chains = nnx.static({"": tuple(names)})
        self.width = width

    def begin(self, chain, batch, done) -> Carry:
        """`pixel_values` float[B, H, W, C], normalised, of the config's size.

        Raises:
          UserError: images of another size or number of channels.
        """
        return Carry(images(batch, self.config.image_size, self.config.num_channels), {}, {})
