# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Published parameters for another size: positions, patches, input channels, words.

    rows = asked(family.RESIZE, overrides)                  # what the user's fields of config.json may resize
    kinds = steps(rows, "stem/position", (1, 197, 768), (1, 577, 768))
    array = apply(kinds, array, (1, 577, 768))

A family lists what may be resized as rows (pattern of paths, kind, published fields that ask for it). Arrays are in
our layouts: tables [..., tokens, D], kernels HWIO. All in float64, so that a table does not depend on a device.
"""

# T old and N new tokens, V words, D width

import math
import re
from collections.abc import Collection, Sequence

import numpy as np

Row = tuple[str, str, tuple[str, ...]]


def grid(table_TD: np.ndarray, count: int) -> np.ndarray:
    """Positions of a square of patches for another square, by antialiased bicubic interpolation as in timm.

    Args:
      table_TD: float[..., T, D]; the tokens that T exceeds a square number by come first, and are kept.
      count: tokens wanted, those included.

    Returns:
      float64[..., count, D].
    """
    tokens = table_TD.shape[-2]
    old, new = math.isqrt(tokens), math.isqrt(count)
    prefix = tokens - old**2
    assert count - new**2 == prefix, (tokens, count)
    first, rest = np.split(table_TD.astype(np.float64), [prefix], axis=-2)
    square = rest.reshape(*rest.shape[:-2], old, old, rest.shape[-1])
    weights = cubic(old, new)
    square = np.einsum("Hh,Ww,...hwd->...HWd", weights, weights, square, optimize=True)
    return np.concatenate([first, square.reshape(*rest.shape[:-2], new**2, rest.shape[-1])], axis=-2)


def line(table_TD: np.ndarray, count: int) -> np.ndarray:
    """Positions of a sequence for another length, by the same interpolation: float[..., T, D] -> float64[..., N, D]."""
    return cubic(table_TD.shape[-2], count) @ table_TD.astype(np.float64)


def patch(kernel_HWIO: np.ndarray, height: int, width: int) -> np.ndarray:
    """A patch embedding for another patch size: the kernel that gives resized patches nearest to what the old one gave
    theirs (Beyer et al. 2022, FlexiViT), the resize being `cubic`.

    Returns:
      float64[height, width, I, O].
    """
    # The resize of a patch is a Kronecker product of one matrix per axis, and so is its pseudo-inverse.
    rows = np.linalg.pinv(cubic(kernel_HWIO.shape[0], height).T)
    columns = np.linalg.pinv(cubic(kernel_HWIO.shape[1], width).T)
    return np.einsum("Hh,Ww,hwio->HWio", rows, columns, kernel_HWIO.astype(np.float64), optimize=True)


def channels(kernel_HWIO: np.ndarray, count: int) -> np.ndarray:
    """A first convolution for another number of input channels: their sum for one, else the old ones again and again,
    scaled so that an image of equal channels gives about what it gave before (as in timm).

    Returns:
      float64[H, W, count, O].
    """
    old, kernel = kernel_HWIO.shape[2], kernel_HWIO.astype(np.float64)
    if count == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(count) % old] * (old / count)


def vocabulary(table_VD: np.ndarray, count: int) -> np.ndarray:
    """More words: new rows from a normal distribution about the old rows' mean, with 1e-9 of their covariance, as in
    `transformers`. A word near the mean disturbs the others least. The draw is always the same.

    Returns:
      float64[count, D], the first V rows as they were.
    """
    table, rng = table_VD.astype(np.float64), np.random.default_rng(0)
    mean = table.mean(axis=0)
    # Random sums of deviations have their covariance, also where there are fewer words than dimensions.
    draws = rng.normal(size=(count - len(table), len(table))) / math.sqrt(len(table))
    return np.concatenate([table, mean + math.sqrt(1e-9) * draws @ (table - mean)])


def cubic(old: int, new: int) -> np.ndarray:
    """float64[new, old]: a line of `old` samples resized to `new` by Keys' cubic kernel (a = -1/2), widened where the
    line shrinks; rows sum to 1."""
    ratio = old / new
    distance = np.abs(np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * ratio) / max(ratio, 1.0)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


# Each kind with the axes that it changes, counted from the end: the sizes that it takes.
_KINDS = {
    "grid": (grid, (-2,)),
    "line": (line, (-2,)),
    "patch": (patch, (-4, -3)),
    "channels": (channels, (-2,)),
    "vocabulary": (vocabulary, (-2,)),
}


def asked(rows: Sequence[Row], fields: Collection[str]) -> tuple[Row, ...]:
    """The rows for which one of these published fields asks."""
    return tuple(row for row in rows if set(row[2]).intersection(fields))


def steps(rows: Sequence[Row], path: str, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[str, ...]:
    """The kinds that lead from one shape to the other; empty where the rows do not."""
    if len(old) != len(new):
        return ()
    changed = {axis for axis in range(-len(old), 0) if old[axis] != new[axis]}
    kinds = [kind for pattern, kind, _ in rows if re.fullmatch(pattern, path)]
    kinds = tuple(kind for kind in kinds if changed.intersection(_KINDS[kind][1]))
    shrinks = "vocabulary" in kinds and new[-2] < old[-2]
    return () if shrinks or changed - {axis for kind in kinds for axis in _KINDS[kind][1]} else kinds


def apply(kinds: Sequence[str], array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array in that shape, by these kinds in turn, in its own dtype."""
    dtype = array.dtype
    for kind in kinds:
        function, axes = _KINDS[kind]
        array = function(array, *(shape[axis] for axis in axes))
    assert array.shape == tuple(shape), (array.shape, shape)
    return array.astype(dtype)
