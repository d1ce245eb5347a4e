# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""3 × 3 convolutions of stride 1 with 2.25 times fewer multiplications.

    y = forward(pads, x, kernel)
    x_change, kernel_change = backward(pads, x, kernel, given)

Winograd's F(2 × 2, 3 × 3), as in Lavin and Gray (2016). A tile of 2 × 2 places of the result sees 4 × 4 of the input,
of which every second begins the next tile. Along each side the result is A'[(G k) ⊙ (B' x)], where A, B and G add and
subtract; over all tiles and channels ⊙ is 16 matrix products. Gradients take the transposed matrices and the same
products. On CPUs it rounds less than XLA's own convolution, as its sums are shorter.
"""

# B examples, H height, W width, C inputs, O outputs, T tiles of all examples

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tl_jax.nn import halves

_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
_KERNEL = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32) / 2
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)


def forward(pads, x, kernel):
    """float32[B, H, W, C] and float32[3, 3, C, O] -> float32[B, H', W', O].

    Args:
      pads: (before, after) along H and W.
    """
    tiles, ends = _tiles(pads, x)
    sums = [[a @ b for a, b in zip(*rows)] for rows in zip(_seen(pads, x), _spread(kernel))]
    sums = halves.both(_by(_OUTPUT), sums)
    y = halves.woven([[part.reshape(len(x), *tiles, -1) for part in row] for row in sums])
    return y[:, : ends[0], : ends[1]]


def backward(pads, x, kernel, given):
    """What comes back to `x` and to `kernel`, if `given` float32[B, H', W', O] comes back to the result."""
    tiles, ends = _tiles(pads, x)
    given = jnp.pad(given, [(0, 0), *((0, 2 * count - end) for count, end in zip(tiles, ends)), (0, 0)])
    given = [[given[:, i::2, j::2].reshape(-1, given.shape[-1]) for j in (0, 1)] for i in (0, 1)]
    given = halves.both(_by(_OUTPUT.T), given)
    change = [[a.T @ b for a, b in zip(*rows)] for rows in zip(_seen(pads, x), given)]
    change = jnp.stack([jnp.stack(row) for row in halves.both(_by(_KERNEL.T), change)])
    back = [[b @ k.T for b, k in zip(*rows)] for rows in zip(given, _spread(kernel))]
    back = [[part.reshape(len(x), *tiles, -1) for part in row] for row in back]
    return halves.cropped(halves.woven(halves.both(_overlapped, back)), pads, x), change


def _tiles(pads, x) -> tuple[list[int], list[int]]:
    """Along H and W: how many tiles, and places of the result."""
    ends = [side + low + high - 2 for side, (low, high) in zip(x.shape[1:], pads)]
    return [-(-end // 2) for end in ends], ends


def _seen(pads, x) -> halves.Square:
    """B' x B: 4 × 4 of float32[T, C]."""
    tiles, _ = _tiles(pads, x)
    around = [(low, 2 * count + 2 - low - side, 0) for count, (low, _), side in zip(tiles, pads, x.shape[1:])]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    height, width = (2 * count - 1 for count in tiles)
    places = [[x[:, i : i + height : 2, j : j + width : 2] for j in range(4)] for i in range(4)]
    return [[part.reshape(-1, x.shape[-1]) for part in row] for row in halves.both(_by(_INPUT), places)]


def _spread(kernel) -> halves.Square:
    """G k G': 4 × 4 of float32[C, O]."""
    return halves.both(_by(_KERNEL), kernel)


def _by(matrix: np.ndarray) -> Callable:
    def along(parts, _=None):
        return [
            functools.reduce(operator.add, (part * weight for weight, part in zip(row, parts) if weight))
            for row in matrix
        ]

    return along


def _overlapped(parts, axis: int) -> list[jax.Array]:
    """Even and odd places of the input, one tile's worth more: a tile's last two are the first two of the next."""
    first, second, third, fourth = _by(_INPUT.T)(parts)
    moved = functools.partial(halves.moved, axis=axis)
    return [moved(first, by=0) + moved(third, by=1), moved(second, by=0) + moved(fourth, by=1)]
