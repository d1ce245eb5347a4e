# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A small set that stays on the devices: many updates in one dispatch, or a whole evaluation.

    resident = Resident(engine)
    if resident.why_not() is None:
        resident.load()
        for count, updates in resident.updates(0, 100, pause=lambda done: done + 10):
            state, metrics = resident.step(state, updates)          # metrics of `count` updates
        judged = resident.beside("validation")                      # None where that does not fit as well
        found = judged.outputs(state)                               # as `evaluation.outputs`

The host then sends numbers of examples, and what the random changes of each draw, instead of examples, and waits for
nothing between two lines of the log. The updates are those that single steps make of the same batches. Images stay
bytes until a step reads them.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from tl_jax.core.barriers import compiler_options
from tl_jax.data import pipeline
from tl_jax.data.batches import BatchPlan
from tl_jax.parallel import mesh as meshes
from tl_jax.parallel import sharding
from tl_jax.train import evaluate
from tl_jax.train.kept import Kept
from tl_jax.train.state import State

# Of a device's memory; what is larger is sent batch by batch.
_SHARE = 0.1


class Updates(NamedTuple):
    """What one dispatch is told.

    Attributes:
      rows: int32[M, B], the examples of every update.
      weights: float32[M, B].
      drawn: int32[M, B, K], what the random changes of each draw.
      count: int32[], of the M updates that are made.
    """

    rows: np.ndarray
    weights: np.ndarray
    drawn: np.ndarray
    count: np.ndarray


class Resident:
    """A split in one phase.

    Args:
      most: updates that a dispatch makes at most; `train.log_every` where None.
      split: `train`, with its random changes and in its order, or one that is evaluated.
    """

    def __init__(self, engine, most: int | None = None, split: str = "train"):
        self._engine, self._most = engine, engine.exp.train.log_every if most is None else most
        training, examples = split == "train", engine.batched[split]
        plan = engine.train_plan if training else engine.eval_plan(examples)
        self._lengths = plan.buckets if plan.lengths is not None else (None,)
        self._examples, transform, self._plan = engine.source(examples, plan, training)
        self._steps = plan.steps_per_epoch
        kept = getattr(transform, "kept", None)
        changed = training and bool(engine.exp.data.augment) and not engine.stores
        self._transform = _Whole(transform, changed) if kept is None else kept(training)
        self.data: Kept | None = None

    def why_not(self) -> str | None:
        """What speaks against keeping the training set; None where nothing does."""
        engine, train = self._engine, self._engine.exp.train
        if train.resident == "off":
            return "train.resident is off"
        if jax.process_count() > 1:
            return "several processes read their own parts of the data"
        if train.resident == "auto" and train.log_every == 1:
            return "train.log_every is 1"
        if engine.exp.profile is not None:
            return "profile follows single steps"
        if self._transform.against is not None:
            return self._transform.against
        if self._shapes is None:
            return "batches are of several lengths"
        if train.resident == "auto" and not engine.stores and jax.default_backend() == "cpu":
            return "a CPU has no other memory, and its steps take longer than a dispatch"
        limit = _SHARE * meshes.memory(engine.mesh)
        if self.nbytes > limit:
            return f"it takes {self.nbytes / 1e6:.0f} MB, {_SHARE:.0%} of a device's memory are {limit / 1e6:.0f}"
        return None

    def beside(self, split: str) -> "Resident | None":
        """Another split, loaded; None where its batches are of several lengths, or both take too much memory."""
        other = Resident(self._engine, split=split)
        limit = _SHARE * meshes.memory(self._engine.mesh)
        if other._shapes is None or self.nbytes + other.nbytes > limit:
            return None
        other.load()
        return other

    @functools.cached_property
    def _shapes(self) -> dict[str, Any] | None:
        """Of one example, in the form in which it is kept; None where examples differ."""
        if len(self._lengths) > 1 and not self._engine.stores:
            return None
        found = []
        for length in self._lengths:
            example = self._transform.collate([self._transform(self._examples[0], None)], length)
            found.append(jax.tree.map(_one, dict(example)))
        return found[0] if all(other == found[0] for other in found[1:]) else None

    @property
    def nbytes(self) -> int:
        """Memory that it takes on every device."""
        return len(self._examples) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._shapes))

    def load(self) -> None:
        """Put every example, and its label, on every device."""
        count, length = len(self._examples), self._lengths[-1]
        size = min(count, self._plan.batch_size)
        sized = {} if length is None else {"lengths": np.full(count, length), "buckets": (length,)}
        plan = BatchPlan(count, size, seed=0, shuffle=False, **sized)
        parts = pipeline.batches(
            self._examples,
            self._transform,
            plan,
            start=0,
            stop=plan.steps_per_epoch,
            rows=slice(None),
            seed=0,
            augment=False,
            threads=self._engine.exp.data.threads,
        )
        # The last batch is filled up.
        arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
        arrays = {name: array for name, array in arrays.items() if name not in ("weight", "id")}
        self.data = Kept(jax.device_put(arrays, sharding.replicated(self._engine.mesh)), self._transform.finish)

    def updates(self, start: int, stop: int, pause: Callable[[int], int]) -> Iterator[tuple[int, Updates]]:
        """Dispatches that make the run's updates [start, stop), each with their number.

        Args:
          pause: updates done -> when something else is to happen next; no later than a dispatch reaches.
        """
        # The next dispatch's numbers are drawn while this one runs.
        with concurrent.futures.ThreadPoolExecutor(1) as ahead:
            coming = None
            while start < stop or coming is not None:
                now, coming = coming, None
                if start < stop:
                    until = min(pause(start), stop)
                    coming = until - start, ahead.submit(self.told, start, until)
                    start = until
                if now is not None:
                    yield now[0], now[1].result()

    def told(self, start: int, stop: int) -> Updates:
        """The run's updates [start, stop), no more than a dispatch makes; what is left of the rows goes unread."""
        most, made = self._most, stop - start
        assert 0 < made <= most, (start, stop, most)
        rows, weights, drawn = map(np.stack, zip(*(self._told(step) for step in range(start, stop))))
        filled = np.minimum(np.arange(most), made - 1)
        return Updates(rows[filled], weights[filled], drawn[filled], np.int32(made))

    def _told(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `Kept.batch` takes for a step."""
        rows, weights, _ = self._plan.batch(step)
        drawn_BK = np.zeros((len(rows), self._transform.numbers), np.int32)
        if drawn_BK.size:
            for row in range(len(rows)):
                drawn_BK[row] = self._transform.draw(pipeline.generator(self._engine.exp.seed, step, row))
        return rows.astype(np.int32), weights, drawn_BK

    def step(self, state: State, updates: Updates) -> tuple[State, dict[str, jax.Array]]:
        """These updates, and their metrics, each float32[M] of which the first `count` mean something."""
        return self._engine.step.many(state, self.data, updates)

    def outputs(self, state: State) -> dict[str, np.ndarray]:
        """What `evaluate.collect` finds of the split, in one dispatch."""
        found = self._forward(state.adapted, self.data, self._every)
        return evaluate.collect(lambda _, part: part, state, [found])

    @functools.cached_property
    def _every(self) -> tuple[np.ndarray, ...]:
        return tuple(map(np.stack, zip(*(self._told(step) for step in range(self._steps)))))

    @functools.cached_property
    def _forward(self):
        """The jitted (params, data, what batches are told) -> outputs [N, …], batch by batch."""
        engine = self._engine

        def run(params, data, told):
            def one(told):
                batch = sharding.spread_batch(data.batch(*told), engine.mesh)
                return engine.forward(params, batch, engine.cut_of(batch))

            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(one, told))

        return jax.jit(run, compiler_options=compiler_options())


class _Whole:
    """In the place of a transform of which nothing is left to a program; what it has `KeptImages` has too."""

    numbers = 0

    def __init__(self, transform, changed: bool):
        self._transform, self.collate = transform, transform.collate
        self.against = "data.augment changes the examples from epoch to epoch" if changed else None

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> Any:
        return self._transform(record, None)

    @staticmethod
    def finish(kept: Any, drawn_BK: jax.Array) -> Any:
        return kept


def _one(rows: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
