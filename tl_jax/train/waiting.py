# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How long the devices stand still because the next batch is still being read.

    waiting = Waiting()
    for batch in waiting.over(batches):
        state, metrics = step(state, batch)
        waiting.dispatched(metrics["loss"])
    waited, seconds = waiting.lap()
    waiting.close()

A loop that dispatches ahead loses nothing by waiting for a batch while the devices still compute. So what counts begins
when the last dispatched step is done, which a thread looks on for, and ends when the batch is there.
"""

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax


class Waiting:
    """Counts from one lap to the next, with a thread of its own until `close`."""

    def __init__(self):
        self._dispatched = 0
        # How many of these are done, and since when; written by the thread alone, as one value.
        self._done = (0, 0.0)
        self._watched: queue.SimpleQueue = queue.SimpleQueue()
        # A daemon: a device that never answers must not hold the process.
        threading.Thread(target=self._watch, name="tl_jax waiting", daemon=True).start()
        self.restart()

    def over(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, in order."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            there = time.perf_counter()
            done, since = self._done
            if done == self._dispatched:
                self._waited += max(there - max(asked, since), 0.0)
            self._asked = True
            yield batch

    def dispatched(self, result: Any) -> None:
        """Tell of the step just dispatched: `result` is one of its arrays, there when the step is done."""
        self._dispatched += 1
        self._watched.put((self._dispatched, result))

    def lap(self) -> tuple[float, float] | None:
        """Seconds waited, and seconds in all, since the last lap or restart; None where no batch was asked for."""
        found = (self._waited, time.perf_counter() - self._since) if self._asked else None
        self.restart()
        return found

    def restart(self) -> None:
        """Leave out what was since the last lap."""
        self._waited, self._asked, self._since = 0.0, False, time.perf_counter()

    def close(self) -> None:
        """End the thread."""
        self._watched.put(None)

    def _watch(self) -> None:
        while (told := self._watched.get()) is not None:
            number, result = told
            try:
                jax.block_until_ready(result)
            # Whatever a device fails with; the loop meets it again where it reads the metrics.
            except RuntimeError:
                return
            self._done = number, time.perf_counter()
