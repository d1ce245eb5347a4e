# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where SpecAugment (Park et al. 2019) hides frames or channels while a network of sounds trains."""

# B batch, T positions

import jax
import jax.numpy as jnp

from tl_jax.nn.functions import keys


def spans(lengths_B, size: int, share: float, length: int, least: int, key: jax.Array) -> jax.Array:
    """Where random spans lie, bool[B, size].

    Args:
      lengths_B: int[B], positions that count of each row; no span reaches beyond.
      share: of those positions to cover if spans did not overlap; their number is rounded up or down by chance.
      length, least: of a span; the least number of them in a row that has room.
    """
    chance, places = keys(key, 2)
    room_B = jnp.maximum(lengths_B - length + 1, 0)
    count_B = jnp.floor(share * lengths_B / length + jax.random.uniform(chance)).astype(jnp.int32)
    count_B = jnp.minimum(jnp.clip(count_B, least, size // length), room_B)
    draws_BT = jax.random.uniform(places, (lengths_B.shape[0], size))
    draws_BT = jnp.where(jnp.arange(size) < room_B[:, None], draws_BT, -1.0)
    # The places with the largest draws: distinct ones, each as likely as any other.
    rank_BT = jnp.argsort(jnp.argsort(-draws_BT, axis=1), axis=1)
    begun_BT = jnp.cumsum(rank_BT < count_B[:, None], axis=1)
    ended_BT = jnp.pad(begun_BT, ((0, 0), (length, 0)))[:, :size]
    return begun_BT > ended_BT
