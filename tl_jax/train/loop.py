# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, evaluations, checkpoints, stopping; receives everything, knows no file and no task."""

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tl_jax.core.errors import UserError
from tl_jax.parallel import processes
from tl_jax.train.callbacks import Callback
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.state import State
from tl_jax.train.stopping import Stopped, StopRequest
from tl_jax.train.waiting import Waiting


@dataclasses.dataclass(frozen=True)
class Pace:
    """When what happens, in steps.

    Attributes:
      total: updates in the run.
      stop: where this phase of it ends; `total` where there is one.
      log_every, eval_every, save_every: at absolute multiples of these.
      patience: evaluations without a better metric after which it stops; None for never, as before the last phase.
      larger_is_better: of the metric.
    """

    total: int
    log_every: int
    eval_every: int
    save_every: int
    patience: int | None
    larger_is_better: bool = True
    stop: int | None = None

    def pause(self, done: int) -> int:
        """After how many updates something else is to happen next."""
        every = (self.log_every, self.eval_every, self.save_every)
        return min(self.end, *((done // steps + 1) * steps for steps in every))

    @property
    def end(self) -> int:
        """The last update of this phase."""
        return self.total if self.stop is None else self.stop


@dataclasses.dataclass
class Progress:
    """What a resumed run must remember beside the state; stored with every checkpoint.

    Attributes:
      best: the best value of the metric, or None.
      since_best: evaluations since then.
      seconds: spent training, over all starts.
      compile_seconds: of them, until the first step had run.
      stopped_early: patience ran out.
      phase: number of the phase that the state belongs to.
      stepping: seconds of them that steps after the first took, up to the line of the log that tells of them.
      waited: of these, those in which the devices stood still for want of a batch; see `train.waiting`.
    """

    best: float | None = None
    since_best: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    stopped_early: bool = False
    phase: int = 0
    stepping: float = 0.0
    waited: float = 0.0


def fit(
    state: State,
    progress: Progress,
    *,
    step: Callable[[State, Any], tuple[State, dict]],
    batches: Callable[[int, int], Iterator[tuple[int, Any]]],
    batch_ids: Callable[[int], np.ndarray],
    evaluate: Callable[[State], tuple[float, Mapping[str, float]]] | None,
    checkpoints: Checkpoints,
    saved: Callable[[State], Any],
    pace: Pace,
    callbacks: Sequence[Callback] = (),
    stop: StopRequest | None = None,
) -> tuple[State, Progress]:
    """Train from `state.step` to the end of this phase, or until patience runs out.

    Args:
      step: (state, batch) -> (state, metrics), of one update or, with one number for each, of several.
      batches: (start, stop) -> what `step` takes for these updates, and how many of them it makes; none goes beyond
        `pace.pause`.
      batch_ids: step -> ids of the global batch, whose checksum goes into the log.
      saved: state -> what a checkpoint of it holds.
      evaluate: state -> (metric that chooses the best checkpoint, all metrics); None without a validation split.

    Raises:
      Stopped: on request, after saving.
      FloatingPointError: the loss is NaN or infinite; the last good checkpoint stays the latest.
    """
    start = int(state.step)
    if progress.stopped_early or start >= pace.end:
        return state, progress
    tell = _Tell(callbacks)
    tell("on_start", start, pace.total)
    tell("say", "compiling the step")
    began, before, first = time.perf_counter(), progress.seconds, True
    window: list[tuple[int, dict]] = []
    checksum, number = 0, start
    source, waiting = batches(start, pace.end), Waiting()
    try:
        for count, batch in waiting.over(source):
            state, metrics = step(state, batch)
            waiting.dispatched(metrics["loss"])
            if first:
                jax.block_until_ready(metrics)
                progress.compile_seconds += time.perf_counter() - began
                waiting.restart()
                first = False
            window.append((count, metrics))
            for done in range(number, number + count):
                checksum = zlib.crc32(np.ascontiguousarray(batch_ids(done)).tobytes(), checksum)
            number += count
            last = number == pace.end
            evaluates = evaluate is not None and (number % pace.eval_every == 0 or last)
            # Before an evaluation too: a network that became NaN is told by its loss, not by its metrics.
            if number % pace.log_every == 0 or last or evaluates:
                _log(number, window, checksum, progress, waiting, tell)
                window, checksum = [], 0
            metric = None
            if evaluates:
                metric, found = evaluate(state)
                tell("on_eval", number, "validation", found)
                _judge(progress, metric, pace)
            stopping = _asked_to_stop(stop, number)
            if number % pace.save_every == 0 or last or stopping or progress.stopped_early or metric is not None:
                if window:
                    _log(number, window, checksum, progress, waiting, tell)
                    window, checksum = [], 0
                progress.seconds = before + time.perf_counter() - began
                checkpoints.save(number, saved(state), dataclasses.asdict(progress), metric)
                tell("on_save", number)
            if stopping:
                checkpoints.wait()
                raise Stopped(number, stop and stop.exit_code or 75)
            if progress.stopped_early:
                break
            if not window:
                waiting.restart()
        tell("say", "waiting for the checkpoint")
        checkpoints.wait()
    finally:
        waiting.close()
        close = getattr(source, "close", None)
        if close is not None:
            close()
        tell("on_end")
    return state, progress


def _log(
    number: int, window: list[tuple[int, dict]], checksum: int, progress: Progress, waiting: Waiting, tell
) -> None:
    """Means over the window, and the share of it spent waiting; the log shows a NaN before the run ends by it."""
    counts, found = zip(*jax.device_get(window))
    values = {
        name: np.concatenate([np.reshape(one[name], -1)[:count] for count, one in zip(counts, found)])
        for name in found[0]
    }
    means = {name: float(np.mean(value)) for name, value in values.items()}
    means["learning_rate"] = float(values["learning_rate"][-1])
    waited = {}
    if (lap := waiting.lap()) is not None:
        progress.waited, progress.stepping = progress.waited + lap[0], progress.stepping + lap[1]
        waited["waited"] = lap[0] / lap[1]
    tell("on_log", number, {**means, **waited, "batch_crc32": checksum})
    if not np.isfinite(means["loss"]):
        raise FloatingPointError(
            f"the loss became {means['loss']} in steps {number - sum(counts) + 1} to {number}: lower"
            " optimizer.learning_rate, set optimizer.clip_norm, or look for broken records in the data"
        )


def _judge(progress: Progress, metric: float, pace: Pace) -> None:
    if np.isnan(metric):
        raise UserError("train.metric", "is undefined on the validation split", "choose another, such as accuracy")
    better = progress.best is None or beats(metric, progress.best, pace.larger_is_better)
    progress.best = metric if better else progress.best
    progress.since_best = 0 if better else progress.since_best + 1
    progress.stopped_early = pace.patience is not None and progress.since_best >= pace.patience


def beats(new: float, old: float, larger_is_better: bool) -> bool:
    """Whether a metric is better than another; not where they are equal."""
    return new != old and (new > old) == larger_is_better


def _asked_to_stop(stop: StopRequest | None, number: int) -> bool:
    """All processes stop at the same step, whichever of them was asked."""
    if jax.process_count() > 1:
        return processes.preempted(number)
    return stop is not None and stop.exit_code is not None


class _Tell:
    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = callbacks

    def __call__(self, name: str, *args) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(*args)
