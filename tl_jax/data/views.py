# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several changed versions of every example, drawn once: its views.

    every = repeated(examples, 4)                              # view v of example i at v * N + i
    plan = CycledPlan(plan, len(examples), 4)                  # epoch e shows view e mod 4
    transform = ViewTransform(transform, len(examples), seed)  # of `numbered(every)`

A view is a pure function of the seed, its number and the example, so that what was computed from it holds for good.
"""

from typing import Any

import numpy as np

from tl_jax.data.batches import BatchPlan
from tl_jax.data.examples import Examples


def repeated(examples: Examples, views: int) -> Examples:
    """The N examples `views` times over."""
    return examples.take(np.tile(np.arange(len(examples)), views))


def numbered(examples: Examples) -> Examples:
    """Records `{"record": what it was, "position": int}`."""
    return examples.instead(lambda index: {"record": examples[index], "position": index})


class CycledPlan:
    """A plan over `repeated` examples: that of one view, over again for the next.

    Args:
      plan: over N examples.
      num_examples: N.
      views: how many there are.
    """

    def __init__(self, plan: BatchPlan, num_examples: int, views: int):
        self._plan, self._num_examples, self._views = plan, num_examples, views
        self.batch_size = plan.batch_size

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, int | None]:
        """As of a `BatchPlan`; the view is that of the step's epoch."""
        indices, weights, length = self._plan.batch(step)
        view = step // self._plan.steps_per_epoch % self._views
        return indices + view * self._num_examples, weights, length


class ViewTransform:
    """In the place of a transform, for `numbered` records: random changes are drawn from (seed, 2, view, example).

    Args:
      transform: from a record to arrays.
      num_examples: N, of one view.
      seed: not negative.
    """

    def __init__(self, transform: Any, num_examples: int, seed: int):
        self._transform, self._num_examples, self._seed = transform, num_examples, seed

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The arrays of the view; `rng` is not used."""
        view, index = divmod(record["position"], self._num_examples)
        return self._transform(record["record"], np.random.default_rng((self._seed, 2, view, index)))

    def collate(self, examples: list[dict], length: int | None = None) -> dict[str, np.ndarray]:
        """As of the transform."""
        return self._transform.collate(examples, length)
