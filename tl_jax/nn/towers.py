# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What networks of an image tower and a text tower share (Radford et al. 2021; Zhai et al. 2023)."""

# B batch, T tokens, D width

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core.chain import Context
from tl_jax.core.errors import UserError
from tl_jax.nn.embed import Embed
from tl_jax.nn.prenorm import Block


class TextEmbeddings(nnx.Module):
    """A stage: sum of word and position embeddings, sized by a text tower's published fields."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        init, width = nnx.initializers.normal(config.initializer_range), config.hidden_size
        self.word = Embed(config.vocab_size, width, embedding_init=init, rngs=rngs)
        self.position = Embed(config.max_position_embeddings, width, embedding_init=init, rngs=rngs)

    def __call__(self, ids_BT: jax.Array, context: Context):
        """int[B, T] -> float[B, T, D]."""
        return self.word(ids_BT) + self.position(jnp.arange(ids_BT.shape[1]))


class Similarity(nnx.Module):
    """A stage: cosines of all images with all texts, scaled and, where there is a bias, shifted.

    Args:
      scale, bias: what they start from; the cosines are multiplied by the exponential of `scale`.
    """

    def __init__(self, scale: jax.Array, bias: jax.Array | None = None):
        self.scale, self.bias = nnx.Param(scale), None if bias is None else nnx.Param(bias)

    def __call__(self, x, context: Context):
        """Named outputs with `image_embeds` float[images, P], and `text_embeds` float[texts, P] of the other tower ->
        the same, both of length 1, with `logits_per_image` float[images, texts]."""
        image_embeds, text_embeds = unit(x["image_embeds"]), unit(context.shared["text_embeds"])
        logits = image_embeds @ text_embeds.T * jnp.exp(self.scale[...])
        logits = logits if self.bias is None else logits + self.bias[...]
        return {**x, "image_embeds": image_embeds, "text_embeds": text_embeds, "logits_per_image": logits}


def blocks(config, *, causal: bool = False, rngs: nnx.Rngs) -> nnx.List:
    """A tower's blocks, sized by its published fields."""
    made = [
        Block(
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_act,
            epsilon=config.layer_norm_eps,
            causal=causal,
            attention_dropout=config.attention_dropout,
            kernel_init=nnx.initializers.normal(config.initializer_range),
            rngs=rngs,
        )
        for _ in range(config.num_hidden_layers)
    ]
    return nnx.List(made)


def texts(batch, limit: int):
    """`input_ids` int[B, T] and `attention_mask` (all ones where absent) of a batch.

    Raises:
      UserError: no texts, or more than `limit` tokens.
    """
    if "input_ids" not in batch:
        raise UserError("batch", "has no input_ids, which the text tower takes", "give texts beside the images")
    ids_BT, mask_BT = batch["input_ids"], batch.get("attention_mask")
    if ids_BT.shape[1] > limit:
        raise UserError("input_ids", f"has {ids_BT.shape[1]} tokens, the network has {limit} positions", "cut them")
    return ids_BT, jnp.ones_like(ids_BT) if mask_BT is None else mask_BT


def unit(x):
    """float[B, D] -> float[B, D] of length 1."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
