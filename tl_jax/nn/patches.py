# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From images to tokens, as all vision transformers begin, and the tokens that stand before those of the patches."""

# B batch, H height, W width, C channels, T tokens, P tokens before the patches, D width

import jax.numpy as jnp
from flax import nnx

from tl_jax.core.errors import UserError
from tl_jax.nn.convolution import convolve


class Patches(nnx.Conv):
    """A linear layer over patches that do not overlap."""

    def __init__(self, channels: int, width: int, size: int, *, bias: bool = True, kernel_init, rngs: nnx.Rngs):
        super().__init__(
            channels,
            width,
            (size, size),
            strides=(size, size),
            padding="VALID",
            use_bias=bias,
            kernel_init=kernel_init,
            conv_general_dilated=convolve,
            rngs=rngs,
        )

    def __call__(self, x_BHWC):
        """float[B, H, W, C] -> float[B, H / size, W / size, D] in the parameters' dtype."""
        # Images are float32 whatever the network computes in, and the wider dtype would spread from here.
        return super().__call__(x_BHWC.astype(self.kernel.dtype))


def tokens(x_BHWD, *first_1PD):
    """The patches in rows, behind tokens that every image has: float[B, P + H W, D]."""
    x_BTD = x_BHWD.reshape(x_BHWD.shape[0], -1, x_BHWD.shape[-1])
    first = [jnp.broadcast_to(token, (x_BTD.shape[0], *token.shape[1:])) for token in first_1PD]
    return jnp.concatenate([*first, x_BTD], axis=1)


def images(batch, size: int, channels: int):
    """`pixel_values` float[B, size, size, channels] of a batch.

    Raises:
      UserError: images of another size or number of channels.
    """
    x_BHWC, expected = batch["pixel_values"], (size, size, channels)
    if x_BHWC.shape[1:] != expected:
        found = f"pixel_values are {list(x_BHWC.shape)}, this network takes [B, {', '.join(map(str, expected))}]"
        raise UserError("batch", found, f"set data.image_size={size}")
    return x_BHWC
