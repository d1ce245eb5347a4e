# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a person and a script see of a run while it goes: the progress bar or lines, `metrics.jsonl`, TensorBoard."""

import sys
import time
from collections.abc import Mapping

from tl_jax.report.metrics import MetricsLog
from tl_jax.report.progress import Progress
from tl_jax.train.callbacks import Callback


class Console(Callback):
    """Progress on stderr; the same numbers in the run's folder.

    Args:
      folder: of the run.
      batch_size: examples a step, for the rate.
      quiet: write to the folder only.
    """

    def __init__(self, folder, batch_size: int, quiet: bool = False):
        self._folder, self._batch_size, self._quiet = folder, batch_size, quiet
        self._log: MetricsLog | None = None
        self._progress: Progress | None = None
        self._since = (0, 0.0)

    def on_start(self, step: int, total: int) -> None:
        self._log = MetricsLog(self._folder)
        self._log.truncate(step)
        self._progress = Progress(total, step, quiet=self._quiet)
        self._since = (step, 0.0)

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        (before, then), now = self._since, time.perf_counter()
        self._since = (step, now)
        # The first line also spans the compilation, whose time is no rate.
        timed = then and step > before
        rate = {"examples_per_second": (step - before) * self._batch_size / (now - then)} if timed else {}
        self._log.write(step, "train", {**metrics, **rate})
        self._progress.update(step, {**metrics, **rate})

    def on_eval(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._log.write(step, split, metrics)
        text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._progress.say(f"step {step}  {split}: {text}")
        self._since = (step, time.perf_counter())

    def say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(f"{text} …")
        elif not self._quiet:
            print(f"{text} …", file=sys.stderr, flush=True)

    def on_end(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._log.close()
            self._progress = None
