# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""mixup and CutMix: training images and their labels mixed in pairs, inside the step.

    mix = Mix("pixel_values", classes=10, mixup=0.8, cutmix=1.0)
    batch = mix(batch, key)                    # labels are shares of classes from here on, float32[B, C]

Image i is mixed with image B - 1 - i of the global batch, all with one drawn share, as timm does by default. So nothing
depends on how the batch is shared out or cut into portions. An example counts with its own weight; those that only fill
up the last batch of an epoch are examples of that batch once more, and may lend their pixels as any other.
"""

# B batch, H height, W width, C classes

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


class Draw(NamedTuple):
    """What chance decides for a batch.

    Attributes:
      cutmix: bool[], a box of the partner is put in; else the two are blended.
      share: float32[], what stays of the image.
      y, x: int32[], the centre of the box.
    """

    cutmix: jax.Array
    share: jax.Array
    y: jax.Array
    x: jax.Array


@dataclasses.dataclass(frozen=True)
class Mix:
    """How images are mixed.

    Attributes:
      images: the name of float[B, H, W, ...] in a batch.
      classes: C.
      mixup, cutmix: shares are drawn from Beta(a, a) of this; 0 for never. Where both are above 0 a coin decides for
        each batch (Zhang et al. 2018; Yun et al. 2019).
    """

    images: str
    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch with images mixed; `label` int32[B], or float32[B, C] of several labels, becomes float32[B, C]."""
        height, width = batch[self.images].shape[1:3]
        return self.apply(batch, self.draw(key, height, width))

    def draw(self, key: jax.Array, height: int, width: int) -> Draw:
        """A pure function of the key."""
        coin, share, y, x = jax.random.split(key, 4)
        chance = 0.5 if self.mixup and self.cutmix else float(self.cutmix > 0)
        cutmix = jax.random.bernoulli(coin, chance)
        alpha = jnp.where(cutmix, self.cutmix, self.mixup)
        return Draw(
            cutmix,
            jax.random.beta(share, alpha, alpha),
            jax.random.randint(y, (), 0, height),
            jax.random.randint(x, (), 0, width),
        )

    def apply(self, batch: Batch, draw: Draw) -> Batch:
        """The batch as a draw mixes it. The share of CutMix is corrected by what of the box lies within the image."""
        images, labels = batch[self.images], batch["label"]
        height, width = images.shape[1:3]
        inside_HW = _side(draw.y, draw.share, height)[:, None] & _side(draw.x, draw.share, width)
        share = jnp.where(draw.cutmix, 1 - inside_HW.mean(dtype=jnp.float32), draw.share)
        # Of every pixel either a part or all: CutMix is a blend with shares of 0 and 1.
        stays_HW = jnp.where(draw.cutmix, 1.0 - inside_HW, share).astype(images.dtype)
        stays = stays_HW.reshape(height, width, *(1 for _ in images.shape[3:]))
        if labels.ndim == 1:
            labels = jax.nn.one_hot(labels, self.classes)
        mixed = {
            self.images: stays * images + (1 - stays) * images[::-1],
            "label": share * labels + (1 - share) * labels[::-1],
        }
        return {**batch, **mixed}


def _side(centre: jax.Array, share: jax.Array, size: int) -> jax.Array:
    """bool[size], what a side of the box covers: sqrt(1 - share) of the whole, around its centre."""
    length = jnp.floor(size * jnp.sqrt(1 - share)).astype(jnp.int32)
    at = jnp.arange(size)
    return (at >= centre - length // 2) & (at < centre + (length + 1) // 2)
