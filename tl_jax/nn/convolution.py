# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions that XLA is slow at on CPUs, by other means there; elsewhere they are `jax.lax.conv_general_dilated`.

    layer = Conv(64, 64, (7, 7), padding=3, feature_group_count=64, rngs=rngs)        # an `nnx.Conv`

A kernel whose places never see the same, as that of one place or of patches, is a matrix product. A depthwise kernel is
as many shifted multiplications and additions as it has places, which fuse into one pass; its gradient in the input is
another such, that in the kernel a sum for each place. A kernel of 3 × 3 over many channels is Winograd's, see
`nn.winograd`. Any other kernel without groups keeps its convolution; its gradient is a product for each place, and that
in the input a convolution whose operands lie as XLA's library wants them. JAX writes them in another order, which XLA
mends outside of loops alone: within one, as `train.accumulate` and many updates in a dispatch are, the one took 30
times as long, the other 5.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from tl_jax.nn import winograd


def convolve(x, kernel, strides, padding, *, feature_group_count: int = 1, **options: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated`, channels last.

    Args:
      x: float[B, …, inputs].
      kernel: float[…, inputs / groups, outputs].
      strides, padding, feature_group_count, options: as there.
    """
    size = kernel.shape[:-2]
    dilated = {*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())} - {1}
    pads = tuple(lax.padtype_to_pads(x.shape[1:-1], size, strides, padding)) if isinstance(padding, str) else padding
    form = tuple(strides), tuple(map(tuple, pads)), feature_group_count, tuple(sorted(options.items()))
    depthwise = 1 < feature_group_count == x.shape[-1] == kernel.shape[-1]
    if dilated or not (depthwise or feature_group_count == 1):
        return lax.conv_general_dilated(x, kernel, strides, padding, feature_group_count=feature_group_count, **options)
    return _other(x, kernel, form)


# As many as fill a product's tiles.
_CHANNELS = 128
# Below, what Winograd's form adds takes as long as what it spares.
_MANY = 32

Conv = functools.partial(nnx.Conv, conv_general_dilated=convolve)


def _usual(form, x, kernel):
    strides, pads, groups, options = form
    return lax.conv_general_dilated(x, kernel, strides, pads, feature_group_count=groups, **dict(options))


def _means(form, kernel):
    """Forward and backward on a CPU."""
    strides, pads, groups, _ = form
    if groups > 1:
        return _depthwise, _depthwise_back
    if not any(map(any, pads)) and all(size <= stride for size, stride in zip(kernel.shape, strides)):
        return _separate, _separate_back
    quick = kernel.shape[:-2] == (3, 3) and strides == (1, 1) and kernel.dtype == jnp.float32
    if quick and min(kernel.shape[-2:]) >= _MANY:
        return _quick, _quick_back
    return _usual, _dense_back


# Which means are used is decided where a program is compiled, for every platform that it is compiled for.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _other(x, kernel, form):
    on_cpu, _ = _means(form, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=functools.partial(on_cpu, form), default=functools.partial(_usual, form)
    )


def _forward(x, kernel, form):
    return _other(x, kernel, form), (x, kernel)


def _backward(form, kept, given):
    def usual(x, kernel, given):
        return jax.vjp(functools.partial(_usual, form), x, kernel)[1](given)

    _, on_cpu = _means(form, kept[1])
    return lax.platform_dependent(*kept, given, cpu=functools.partial(on_cpu, form), default=usual)


_other.defvjp(_forward, _backward)


def _quick(form, x, kernel):
    return winograd.forward(form[1], x, kernel)


def _quick_back(form, x, kernel, given):
    return winograd.backward(form[1], x, kernel, given)


def _separate(form, x, kernel):
    return _patches(form, kernel.shape[:-2], x) @ kernel.reshape(-1, kernel.shape[-1])


def _separate_back(form, x, kernel, given):
    seen, back = jax.vjp(functools.partial(_patches, form, kernel.shape[:-2]), x)
    change = _product(seen, given).astype(kernel.dtype).reshape(kernel.shape)
    return *back(given @ kernel.reshape(-1, kernel.shape[-1]).T), change


def _patches(form, size, x):
    """[B, …, size · inputs]: what every place of the result sees, in a row."""
    sides = [(n, (n - k) // stride + 1, stride) for n, k, stride in zip(x.shape[1:], size, form[0])]
    ends = [(0, count * stride - n, 0) for n, count, stride in sides]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    x = x.reshape(x.shape[0], *(part for _, *parts in sides for part in parts), x.shape[-1])
    x = x[(slice(None), *(part for k in size for part in (slice(None), slice(k))))]
    x = x.transpose(0, *range(1, x.ndim - 1, 2), *range(2, x.ndim - 1, 2), x.ndim - 1)
    return x.reshape(x.shape[0], *(count for _, count, _ in sides), -1)


def _product(seen, given):
    """float32[channels of one, channels of the other], over examples and places."""
    seen, given = (x.reshape(-1, x.shape[-1]) for x in (seen, given))
    return jnp.matmul(seen.T, given, preferred_element_type=jnp.float32)


def _dense_back(form, x, kernel, given):
    strides, pads, _, options = form
    size, ones = kernel.shape[:-2], (1,) * len(strides)
    # (kernel, padding before, places, places of the result with zeros between them), along every side
    sides = [
        (k, low, n, (m - 1) * stride + 1)
        for k, (low, _), n, m, stride in zip(size, pads, x.shape[1:], given.shape[1:], strides)
    ]
    options = {name: value for name, value in options if name not in ("lhs_dilation", "rhs_dilation")}
    # A place of the input is seen by the places of the kernel in reverse.
    turned = jnp.flip(kernel, range(len(size))).swapaxes(-1, -2)
    around = [(k - 1 - low, n - wide + low) for k, low, n, wide in sides]
    back = lax.conv_general_dilated(given, turned, ones, around, lhs_dilation=strides, **options)
    # Places of few channels share a product.
    windows, together = [seen for _, seen in _windows(form, x, kernel)], max(1, _CHANNELS // x.shape[-1])
    shared = [windows[first : first + together] for first in range(0, len(windows), together)]
    change = jnp.concatenate([_product(jnp.concatenate(part, -1), given) for part in shared])
    return back, change.astype(kernel.dtype).reshape(kernel.shape)


def _depthwise(form, x, kernel):
    return _weighted(_windows(form, x, kernel), kernel).astype(x.dtype)


def _windows(form, x, kernel):
    """(place in the kernel, what it sees) of every place."""
    strides, pads, _, _ = form
    padded = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    counts = [(size - window) // stride + 1 for size, window, stride in zip(padded.shape[1:], kernel.shape, strides)]
    for place in itertools.product(*map(range, kernel.shape[:-2])):
        ends = [start + (count - 1) * stride + 1 for start, count, stride in zip(place, counts, strides)]
        yield place, padded[(slice(None), *(slice(*part) for part in zip(place, ends, strides)))]


def _weighted(windows, kernel):
    """float32: the sum of all that is seen times the kernel there."""
    return sum(seen.astype(jnp.float32) * kernel[place][0].astype(jnp.float32) for place, seen in windows)


def _depthwise_back(form, x, kernel, given):
    strides, pads, _, _ = form
    size, axes = kernel.shape[:-2], tuple(range(x.ndim - 1))
    wide = given.astype(jnp.float32)
    change = [jnp.sum(seen.astype(jnp.float32) * wide, axis=axes) for _, seen in _windows(form, x, kernel)]
    # A place of the input is seen by the places of the kernel in reverse.
    ends = [
        (window - 1 - low, low + have - (out - 1) * stride - 1, stride - 1)
        for window, (low, _), have, out, stride in zip(size, pads, x.shape[1:], given.shape[1:], strides)
    ]
    spread = lax.pad(given, jnp.zeros((), given.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    form = (1,) * len(size), ((0, 0),) * len(size), form[2], ()
    back = _depthwise(form, spread, jnp.flip(kernel, range(len(size))))
    return back.astype(x.dtype), jnp.stack(change).astype(kernel.dtype).reshape(kernel.shape)
