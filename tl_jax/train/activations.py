# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The cut, cached: what crosses it, computed once for every example and kept in memory or in mapped files.

    store = Activations(lengths, shapes)
    store.fill(batches, crossing)                      # in index order, each example at its own padded length
    batch["crossing"] = store.rows(indices, length)    # instead of the inputs

A frozen prefix computes the same thing in every epoch; this trades memory for it. Knows arrays, no network.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

Shapes = Callable[[int | None], Any]


class Activations:
    """What crosses the cut for N examples.

    Args:
      lengths: the padded length of each example, or None for all where one shape fits all.
      shapes: padded length -> what crosses for one batch, a tree of `jax.ShapeDtypeStruct` [B, …].
      views: how many versions of each of N / views examples these are, see `data.views`; 0 for examples as they are.
    """

    def __init__(self, lengths: Sequence[int | None], shapes: Shapes, views: int = 0):
        self.lengths, self._shapes, self.views = tuple(lengths), shapes, views
        counts: dict[int | None, int] = {}
        # (piece, row within it) of every example.
        self._rows = np.zeros(len(lengths), np.int64)
        for position, length in enumerate(lengths):
            self._rows[position] = counts.get(length, 0)
            counts[length] = counts.get(length, 0) + 1
        numbers = {length: number for number, length in enumerate(counts)}
        self._piece = np.array([numbers[length] for length in lengths], np.int64)
        self._counts = counts
        self._leaves: list[list[np.ndarray]] = []

    @property
    def arrays(self) -> list[jax.ShapeDtypeStruct]:
        """What the whole store consists of: one array of [examples, …] for every leaf at every length."""
        return [
            jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
            for length, count in self._counts.items()
            for leaf in jax.tree.leaves(self._shapes(length))
        ]

    @property
    def nbytes(self) -> int:
        """Memory that the whole store takes."""
        return sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in self.arrays)

    def hold(self, arrays: Sequence[np.ndarray]) -> None:
        """Read from these arrays, of the shapes of `arrays`, from now on."""
        left = iter(arrays)
        # Views without the class of mapped files, whose own indexing is slower.
        self._leaves = [
            [next(left).view(np.ndarray) for _ in jax.tree.leaves(self._shapes(length))] for length in self._counts
        ]

    def fill(
        self,
        batches: Iterable[dict[str, Any]],
        crossing: Callable[[dict[str, Any]], Any],
        arrays: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Compute everything.

        Args:
          batches: every example once; the examples of a batch have one padded length.
          crossing: batch -> positions int32[B], weights float32[B] (0 for fillers) and what crosses, arrays [B, …]; the
            host can read all of it.
          arrays: to be written to, of the shapes of `arrays`; None for new ones in memory.
        """
        self.hold([np.empty(array.shape, array.dtype) for array in self.arrays] if arrays is None else arrays)
        before = None
        for batch in batches:
            # The next batch computes while the one before it is copied.
            now = crossing(batch)
            if before is not None:
                self._keep(*before)
            before = now
        if before is not None:
            self._keep(*before)

    def _keep(self, ids, weights, tree) -> None:
        real = np.asarray(weights) > 0
        positions = np.asarray(ids)[real]
        (piece,) = set(self._piece[positions].tolist())
        for kept, leaf in zip(self._leaves[piece], jax.tree.leaves(tree), strict=True):
            kept[self._rows[positions]] = np.asarray(leaf)[real]

    def rows(self, positions: np.ndarray, length: int | None) -> Any:
        """What crosses for these examples at this padded length, as NumPy arrays [len(positions), …].

        Along the axes that follow the length, what an example was not computed for is zero: it is padding there.
        """
        shapes, treedef = jax.tree.flatten(self._shapes(length))
        found = []
        for number, shape in enumerate(shapes):
            out = np.zeros((len(positions), *shape.shape[1:]), shape.dtype)
            for piece in set(self._piece[positions].tolist()):
                kept = self._leaves[piece][number]
                here = np.flatnonzero(self._piece[positions] == piece)
                common = tuple(slice(min(have, want)) for have, want in zip(kept.shape[1:], out.shape[1:]))
                out[(here, *common)] = kept[(self._rows[positions[here]], *common)]
            found.append(out)
        return jax.tree.unflatten(treedef, found)


def used(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with None for every leaf on which nothing that `function` returns depends.

    Args:
      tree: abstract arguments, `jax.ShapeDtypeStruct` leaves.
    """
    leaves, treedef = jax.tree.flatten(tree)
    jaxpr = jax.make_jaxpr(lambda *leaves: function(jax.tree.unflatten(treedef, leaves)))(*leaves).jaxpr
    read = {id(var) for var in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(var) in read for var in equation.outvars):
            read.update(id(var) for var in equation.invars)
    return jax.tree.unflatten(
        treedef, [leaf if id(var) in read else None for leaf, var in zip(leaves, jaxpr.invars, strict=True)]
    )


class StoredRows:
    """In the place of a transform: records `{"position": int}` become `crossing`, from a store."""

    def __init__(self, store: Activations):
        self._store = store

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> int:
        """The position; nothing is random."""
        return record["position"]

    def collate(self, positions: list[int], length: int | None = None) -> dict[str, Any]:
        """What crosses the cut for these examples."""
        return {"crossing": self._store.rows(np.asarray(positions), length)}
