# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A small training set that stays on the devices, and many updates in one dispatch.

    resident = Resident(engine)
    if resident.why_not() is None:
        resident.load()
        for count, updates in resident.updates(0, 100, pause=lambda done: done + 10):
            state, metrics = resident.step(state, updates)          # metrics of `count` updates

The host then sends numbers of examples instead of examples, and waits for nothing between two lines of the log. The
updates are those that single steps make of the same batches.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from tl_jax.parallel import mesh as meshes
from tl_jax.parallel import sharding
from tl_jax.train.state import State

# Of a device's memory; what is larger is sent batch by batch.
_SHARE = 0.1


class Updates(NamedTuple):
    """What one dispatch is told.

    Attributes:
      rows: int32[M, B], the examples of every update.
      weights: float32[M, B].
      count: int32[], of the M updates that are made.
    """

    rows: np.ndarray
    weights: np.ndarray
    count: np.ndarray


class Resident:
    """The training set of one phase.

    Args:
      most: updates that a dispatch makes at most; `train.log_every` where None.
    """

    def __init__(self, engine, most: int | None = None):
        self._engine, self._most = engine, engine.exp.train.log_every if most is None else most
        self._examples, self._transform, self._plan = engine.source(engine.batched["train"], engine.train_plan, True)
        self.data: dict[str, Any] | None = None

    def why_not(self) -> str | None:
        """What speaks against it; None where nothing does."""
        engine, train = self._engine, self._engine.exp.train
        if train.resident == "off":
            return "train.resident is off"
        if jax.process_count() > 1:
            return "several processes read their own parts of the data"
        if train.resident == "auto" and train.log_every == 1:
            return "train.log_every is 1"
        if engine.exp.profile is not None:
            return "profile follows single steps"
        if not engine.stores and engine.exp.data.augment:
            return "data.augment changes the examples from epoch to epoch"
        if self._shapes is None:
            return "batches are of several lengths"
        if train.resident == "auto" and not engine.stores and jax.default_backend() == "cpu":
            return "a CPU has no other memory, and its steps take longer than a dispatch"
        limit = _SHARE * meshes.memory(engine.mesh)
        if self.nbytes > limit:
            return f"it takes {self.nbytes / 1e6:.0f} MB, {_SHARE:.0%} of a device's memory are {limit / 1e6:.0f}"
        return None

    @functools.cached_property
    def _shapes(self) -> dict[str, Any] | None:
        """Of one example, in the form of a batch; None where examples differ."""
        plan = self._engine.train_plan
        lengths = plan.buckets if plan.lengths is not None else (None,)
        if len(lengths) > 1 and not self._engine.stores:
            return None
        found = [jax.tree.map(_one, self._collated([0], length)) for length in lengths]
        return found[0] if all(other == found[0] for other in found[1:]) else None

    def _collated(self, rows: list[int], length: int | None) -> dict[str, Any]:
        return dict(self._transform.collate([self._transform(self._examples[row], None) for row in rows], length))

    @property
    def nbytes(self) -> int:
        """Memory that it takes on every device."""
        return len(self._examples) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._shapes))

    def load(self) -> None:
        """Put every example, and its label, on every device."""
        plan, examples = self._engine.train_plan, self._examples
        length = max(plan.buckets) if plan.lengths is not None else None
        data = self._collated(list(range(len(examples))), length)
        labels = self._engine.batched["train"].labels
        if labels is not None:
            views = len(examples) // len(labels)
            dtype = np.float32 if examples.multi_label else np.int32
            data["label"] = np.concatenate([labels.astype(dtype)] * views)
        self.data = jax.device_put(data, sharding.replicated(self._engine.mesh))

    def updates(self, start: int, stop: int, pause: Callable[[int], int]) -> Iterator[tuple[int, Updates]]:
        """Dispatches that make the run's updates [start, stop), each with their number.

        Args:
          pause: updates done -> when something else is to happen next; no later than a dispatch reaches.
        """
        while start < stop:
            until = min(pause(start), stop)
            yield until - start, self.told(start, until)
            start = until

    def told(self, start: int, stop: int) -> Updates:
        """The run's updates [start, stop), no more than a dispatch makes; what is left of the rows goes unread."""
        most, last = self._most, stop - 1
        assert start < stop <= start + most, (start, stop, most)
        rows, weights, _ = zip(*(self._plan.batch(min(start + number, last)) for number in range(most)))
        return Updates(np.stack(rows).astype(np.int32), np.stack(weights), np.int32(stop - start))

    def step(self, state: State, updates: Updates) -> tuple[State, dict[str, jax.Array]]:
        """These updates, and their metrics, each float32[M] of which the first `count` mean something."""
        return self._engine.step.many(state, self.data, updates)


def _one(rows: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
