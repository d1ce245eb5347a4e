# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run is and how long it will take: a bar on a terminal, plain lines anywhere else.

    with Progress(total_steps=1000, start=120) as progress:
        progress.say("compiling the step …")
        progress.update(130, {"loss": 0.41, "examples_per_second": 812.0})
        # step 130/1000  loss 0.41  812 examples/s  2:10 left

Written to stderr, so that stdout stays for results. Knows steps and numbers, not what is trained.
"""

import sys
import time
from typing import Any, TextIO


class Progress:
    """Both forms say the same: step, loss, examples a second and time left.

    Args:
      total_steps: the step at which the run ends.
      start: the step at which it starts, above 0 on resume.
      stream: stderr when None; a terminal gets the bar.
      quiet: write nothing at all.
    """

    def __init__(self, total_steps: int, start: int = 0, stream: TextIO | None = None, *, quiet: bool = False):
        self._total = total_steps
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._first: tuple[float, int] | None = None
        self._bar = _bar(total_steps, start, self._stream) if self._stream.isatty() and not quiet else None

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        """Tell where the run is.

        Args:
          step: updates done.
          metrics: `loss` and `examples_per_second` are shown where they are given.

        The time left is that of the steps since the first call, so that compiling does not count and evaluating does.
        """
        if self._quiet:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, step
        facts = self._facts(step, metrics, now)
        if self._bar is not None:
            self._bar.update(0, completed=step, facts="  ".join(facts))
        else:
            self._line("  ".join([f"step {step}/{self._total}", *facts]))

    def say(self, text: str) -> None:
        """Name what takes long, for instance "compiling the step …"."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            self._line(text)

    def close(self) -> None:
        """Leave the terminal as it was; may be called twice."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _facts(self, step: int, metrics: dict[str, Any], now: float) -> list[str]:
        facts = []
        if "loss" in metrics:
            facts.append(f"loss {float(metrics['loss']):.4g}")
        if "examples_per_second" in metrics:
            facts.append(f"{float(metrics['examples_per_second']):,.0f} examples/s")
        then, first_step = self._first
        if step > first_step:
            facts.append(f"{clock((now - then) / (step - first_step) * (self._total - step))} left")
        return facts

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def clock(seconds: float) -> str:
    """'0:05', '12:30' or '3:00:00'."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _bar(total_steps: int, start: int, stream: TextIO):
    from rich import console, progress

    bar = progress.Progress(
        progress.TextColumn("step"),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[facts]}", markup=False),
        console=console.Console(file=stream),
        refresh_per_second=2,
    )
    bar.add_task("train", total=total_steps, completed=start, facts="")
    bar.start()
    return bar
