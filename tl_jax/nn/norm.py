# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Normalisation with the settings that published weights were trained under."""

from flax import nnx


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis, by the exact variance: the fast E[x²] - E[x]² loses everything where the mean is
    large against the deviation."""

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        super().__init__(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


class BatchNorm(nnx.BatchNorm):
    """BatchNorm over all axes but the last; PyTorch's momentum 0.1 is 0.9 here.

    The mode comes with each call, never as a state of the layer: normalise by the running statistics, or by the batch
    while the running ones follow. Statistics are float32 whatever the network computes in.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        super().__init__(width, momentum=0.9, epsilon=epsilon, use_fast_variance=False, rngs=rngs)

    def __call__(self, x, batch_stats: bool):
        """float[..., width] -> float[..., width] of the same dtype."""
        old = self.var[...]
        y = super().__call__(x, use_running_average=not batch_stats)
        if batch_stats:
            # Flax moves the running variance towards the biased one of the batch, PyTorch towards n / (n - 1) of it.
            count = x.size // x.shape[-1]
            self.var[...] += (self.var[...] - self.momentum * old) / max(count - 1, 1)
        return y.astype(x.dtype)
