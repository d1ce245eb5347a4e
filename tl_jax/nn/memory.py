# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a decoder that writes keeps from one word to the next, so that no word is computed twice.

    x_BTD, memory = run(stages, params, carry, empty(rows, 64), counts_BT)     # the prompt
    x_B1D, memory = run(stages, params, carry, memory, ones_B1)                # one word more, and so on

A `Memory` is a tree of arrays of fixed sizes, so that writing is a loop of one compiled step; `run` is pure. While a
stage is traced it sees its part as `context.memory`, a `Recall`, which is None everywhere but here: attention lengthens
its keys and values through it, and asks it where tokens are. Knows no family.
"""

# B rows, T tokens that run now, L columns, K heads of keys, H width of a head

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Carry, Stage

# Later than any query, so that the rule which hides what comes later hides padding and empty columns too; half of the
# range, so that no difference overflows.
_AWAY = 2**30


class Memory(NamedTuple):
    """What is kept.

    Attributes:
      places_BL: int32[B, L], which token of its row each column holds; a number beyond all where it holds none.
      next_B: int32[B], how many tokens each row has. Rows of a batch may have prompts of different lengths, padded on
        the right; the words that follow stand in the same column of all rows.
      column: int32[], how many columns are written.
      grown: keys and values float[B, L, K, H] by stage.
      fixed: by stage, trees of what was computed with the prompt and stays.
    """

    places_BL: jax.Array
    next_B: jax.Array
    column: jax.Array
    grown: Mapping[str, tuple[jax.Array, jax.Array]]
    fixed: Mapping[str, Any]

    def repeated(self, times: int) -> "Memory":
        """Every row so many times in a row."""
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0) if x.ndim else x, self)

    def reordered(self, rows_B) -> "Memory":
        """Row `rows_B[i]` as row i, where rows that take each other's place have one prompt: all but `grown` is the
        same for them."""
        return self._replace(grown=jax.tree.map(lambda x: x[rows_B], self.grown))


def empty(rows: int, columns: int) -> Memory:
    """Nothing read yet, room for so many tokens."""
    zero = jnp.zeros((), jnp.int32)
    return Memory(jnp.full((rows, columns), _AWAY, jnp.int32), jnp.zeros(rows, jnp.int32), zero, {}, {})


class Recall:
    """One stage's part of a memory while the stage is traced.

    Attributes:
      places_BT: int32[B, T], which token of its row each one is that runs now.
    """

    def __init__(self, memory: Memory, name: str, places_BT: jax.Array):
        self.places_BT, self._places_BL, self._column = places_BT, memory.places_BL, memory.column
        self._name, self._old, self._kept = name, memory.grown, memory.fixed
        self.grown: dict[str, tuple[jax.Array, jax.Array]] = {}
        self.fixed: dict[str, Any] = {}

    def extend(self, k_BTKH, v_BTKH, window: int | None = None):
        """Add the keys and values of the tokens that run now; once a stage.

        Returns:
          All keys and values, float[B, L, K, H], and bool[B, T, L]: which of them each query sees, those up to its own
          place and of those the last `window`.
        """
        assert self._name not in self.grown, f"{self._name} has two memories of keys"
        shape = (*self._places_BL.shape, *k_BTKH.shape[2:])
        old = self._old.get(self._name) or (jnp.zeros(shape, k_BTKH.dtype), jnp.zeros(shape, v_BTKH.dtype))
        start = (0, self._column, 0, 0)
        new = tuple(jax.lax.dynamic_update_slice(all_, x, start) for all_, x in zip(old, (k_BTKH, v_BTKH)))
        self.grown[self._name] = new
        behind_BTL = self.places_BT[:, :, None] - self._places_BL[:, None, :]
        seen_BTL = behind_BTL >= 0
        return *new, seen_BTL if window is None else seen_BTL & (behind_BTL < window)

    def ahead(self) -> jax.Array:
        """int32[B, T, L]: how many places each column is ahead of each query, in (-L, L); what no query sees is as far
        ahead as can be."""
        most = self._places_BL.shape[1] - 1
        return jnp.minimum(self._places_BL[:, None, :] - self.places_BT[:, :, None], most)

    def once(self, make: Callable[[], Any]) -> Any:
        """What `make` gives with the prompt, kept from then on; once a stage."""
        assert self._name not in self.fixed, f"{self._name} keeps two things"
        self.fixed[self._name] = self._kept[self._name] if self._name in self._kept else make()
        return self.fixed[self._name]


def once(memory: Recall | None, make: Callable[[], Any]) -> Any:
    """`memory.once(make)`, or just `make()` where nothing is remembered."""
    return make() if memory is None else memory.once(make)


def run(
    stages: Sequence[Stage], params: Mapping[str, jax.Array], carry: Carry, memory: Memory, counts_BT: jax.Array
) -> tuple[Any, Memory]:
    """Run consecutive stages over the next tokens of every row.

    Args:
      carry: what enters the first stage, for T tokens.
      counts_BT: bool[B, T], False for padding, which stands on the right.

    Returns:
      What leaves the last stage, and the memory with those tokens in it.
    """
    places_BT = memory.next_B[:, None] + jnp.arange(counts_BT.shape[1], dtype=jnp.int32)
    written_BT = jnp.where(counts_BT, places_BT, _AWAY)
    places_BL = jax.lax.dynamic_update_slice(memory.places_BL, written_BT, (0, memory.column))
    memory, grown, fixed = memory._replace(places_BL=places_BL), {}, {}
    for stage in stages:
        recall = Recall(memory, stage.name, places_BT)
        carry, _ = chain.run_stage(stage, params, carry, EVAL, None, memory=recall)
        grown.update(recall.grown)
        fixed.update(recall.fixed)
    next_B = memory.next_B + counts_BT.sum(axis=1, dtype=jnp.int32)
    column = memory.column + jnp.int32(counts_BT.shape[1])
    return carry.x, Memory(places_BL, next_B, column, grown, fixed)
