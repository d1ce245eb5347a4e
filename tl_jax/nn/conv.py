# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Pieces of convolutional networks."""

# B batch, H height, W width, C channels

import jax
from flax import nnx

from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn.convolution import Conv
from tl_jax.nn.norm import BatchNorm


class ConvNorm(nnx.Module):
    """Convolution and BatchNorm.

    Args:
      inputs, outputs: channels; as many `groups` as both make a depthwise convolution.
      size: of the kernel, (height, width) or the side of a square.
      stride: along both.
      padding: as `nnx.Conv` takes it; None for half the side on every side.
      momentum: of the running statistics, PyTorch's 1 - momentum.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        stride: int = 1,
        *,
        groups: int = 1,
        padding=None,
        bias: bool = False,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            inputs,
            outputs,
            (size, size) if isinstance(size, int) else size,
            strides=(stride, stride),
            padding=size // 2 if padding is None else padding,
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs, epsilon=epsilon, rngs=rngs)
        self.norm.momentum = momentum

    def __call__(self, x_BHWC, batch_stats: bool):
        """float[B, H, W, inputs] -> float[B, H / stride, W / stride, outputs]."""
        return self.norm(self.conv(x_BHWC), batch_stats)


def begin(batch, channels: int) -> Carry:
    """What enters a network that takes images of any size: `pixel_values` float[B, H, W, channels].

    Raises:
      UserError: another number of channels.
    """
    x_BHWC = batch["pixel_values"]
    if x_BHWC.ndim != 4 or x_BHWC.shape[-1] != channels:
        found = f"pixel_values are {list(x_BHWC.shape)}, this network takes [B, H, W, {channels}]"
        raise UserError("batch", found, f"give images of {channels} channels, the channels last")
    return Carry(x_BHWC, {}, {})


def mean_pooled(x_BHWC: jax.Array) -> dict[str, jax.Array]:
    """Feature map float[B, H, W, C] -> `last_hidden_state`, the same, and `pooler_output` float[B, C], its mean."""
    return {"last_hidden_state": x_BHWC, "pooler_output": x_BHWC.mean(axis=(1, 2))}


class Pool(nnx.Module):
    """Mean over the image; a stage without parameters."""

    def __call__(self, x_BHWD, context: Context):
        """float[B, H, W, D] -> `last_hidden_state`, the same, and `pooler_output` float[B, D]."""
        return mean_pooled(x_BHWD)
