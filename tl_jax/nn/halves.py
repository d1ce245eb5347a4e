# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures in parts, each of which holds every second place along height and width.

What windows of 3 or 4 places every 2 give back to a picture is a few sums of such parts, moved by one, and no scatter.
"""

# B examples, H height, W width, C channels

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Arrays of one shape in rows and columns.
Square = Sequence[Sequence[jax.Array]]


def both(along: Callable, square: Square) -> Square:
    """`along(arrays, axis)` of every column (axis 1), then of every row of what that gives (axis 2)."""
    columns = [along(column, 1) for column in zip(*square)]
    return [along(row, 2) for row in zip(*columns)]


def moved(x_BHWC: jax.Array, axis: int, by: int) -> jax.Array:
    """One place longer along the axis, behind (`by` 0) or before (1)."""
    return jnp.pad(x_BHWC, [(by, 1 - by) if side == axis else (0, 0) for side in range(x_BHWC.ndim)])


def woven(square: Square) -> jax.Array:
    """[B, 2 H, 2 W, C] from its four parts [B, H, W, C]: in rows by their height, in columns by their width."""
    batch, height, width, _ = square[0][0].shape
    rows = [jnp.stack(row, 3) for row in square]
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, -1)


def cropped(x_BHWC: jax.Array, pads: Sequence[tuple[int, int]], like: jax.Array) -> jax.Array:
    """The places of `like`, before which as many others stand as were added to it along height and width."""
    cut = [(-low, low + side - have, 0) for (low, _), side, have in zip(pads, like.shape[1:], x_BHWC.shape[1:])]
    return jax.lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), [(0, 0, 0), *cut, (0, 0, 0)])
