# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several texts in one row, none of which sees another.

    mask_BTT = alike(segments_BT)      # for `attention.attend`
    places_BT = places(segments_BT)    # for a table of positions

`segments` counts the texts of a row from 1 and has 0 for padding, on the right: 1, 1, 1, 2, 2, 0, 0. Knows no family.
"""

# B batch, T time

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tl_jax.core.errors import UserError

# Last stages that speak for every token; a head that gives one answer a row cannot tell its texts apart.
_BY_TOKEN = ("norm", "lm_head")


def alike(segments_BT) -> jax.Array:
    """bool[B, T, T], where query and key are of one text. Padding sees padding, so that no query is without a key."""
    return segments_BT[:, :, None] == segments_BT[:, None, :]


def places(segments_BT) -> jax.Array:
    """int32[B, T], which token of its text each one is, from 0 on."""
    columns_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    begins_BT = jnp.diff(segments_BT, axis=1, prepend=-1) != 0
    return columns_T - jax.lax.cummax(jnp.where(begins_BT, columns_T, 0), axis=1)


def read(batch: Mapping[str, jax.Array], last: str) -> tuple[jax.Array, jax.Array | None]:
    """What a causal network attends to, and where its tokens stand.

    Args:
      batch: `input_ids` int[B, T], and `segments` int[B, T] or `attention_mask` int[B, T], all ones without either.
      last: the name of the network's last stage.

    Returns:
      With segments bool[B, T, T] and int32[B, T]; else int[B, T], and None for places that count from the row's first
      token.

    Raises:
      UserError: segments beside a mask, or for a network that gives one answer a row.
    """
    ids_BT, mask_BT, segments_BT = (batch.get(name) for name in ("input_ids", "attention_mask", "segments"))
    if segments_BT is None:
        return jnp.ones_like(ids_BT) if mask_BT is None else mask_BT, None
    if mask_BT is not None:
        raise UserError("batch", "has segments and attention_mask, and segments say what is padding", "give one")
    if last not in _BY_TOKEN:
        raise UserError("batch", f"has segments, and the network's {last} gives one answer a row", "leave them out")
    return alike(segments_BT), places(segments_BT)
