# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The loop: when it evaluates, saves, and stops, and what it leaves behind."""

import dataclasses
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.core.errors import UserError
from tl_jax.train import loop, stopping
from tl_jax.train.callbacks import Callback
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.loop import Pace, Progress
from tl_jax.train.state import State
from tl_jax.train.stopping import Stopped, StopRequest


class Told(Callback):
    """Keeps what it heard, and may act on it."""

    def __init__(self, act=lambda step: None):
        self.logs, self.evals, self.saves, self.ended, self.act = {}, [], [], 0, act

    def on_log(self, step, metrics):
        """Kept by step."""
        self.logs[step] = metrics
        self.act(step)

    def on_eval(self, step, split, metrics):
        """Kept."""
        self.evals.append(step)

    def on_save(self, step):
        """Kept."""
        self.saves.append(step)

    def on_end(self):
        """Counted."""
        self.ended += 1


def state_at(step: int) -> State:
    """One number that trains: how many steps were made."""
    w = {"w": jnp.full(2, step, jnp.float32)}
    return State(jnp.int32(step), w, {}, (), {}, jax.random.key(0))


def a_step(state, batch):
    """Counts; its loss is the batch's own number."""
    trained = {"w": state.trained["w"] + 1}
    metrics = {"loss": np.float32(batch), "learning_rate": np.float32(0.5)}
    return dataclasses.replace(state, step=state.step + 1, trained=trained), metrics


def fit(folder, *, total=6, start=0, losses=None, values=None, told=None, progress=None, stop=None, **pace):
    """Run the loop; `values` are the metrics of the evaluations in order."""
    told = Told() if told is None else told
    values = None if values is None else iter(values)
    pace = {"log_every": 2, "eval_every": 2, "save_every": 100, "patience": None, **pace}
    losses = losses or {}

    def evaluate(state):
        value = next(values)
        return value, {"accuracy": value}

    with Checkpoints(folder, keep=10) as checkpoints:
        state, progress = loop.fit(
            state_at(start),
            Progress() if progress is None else progress,
            step=a_step,
            batches=lambda first, last: iter([(1, losses.get(number, 1.0)) for number in range(first + 1, last + 1)]),
            batch_ids=lambda number: np.arange(number, number + 2),
            evaluate=None if values is None else evaluate,
            checkpoints=checkpoints,
            saved=lambda state: state.moving,
            pace=Pace(total, **pace),
            callbacks=[told],
            stop=stop,
        )
    return state, progress, told


def on_disk(folder):
    """(steps that count, value of the latest, its progress)."""
    with Checkpoints(folder) as checkpoints:
        latest = checkpoints.latest()
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        kind = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state_at(0).moving)
        tree, progress = checkpoints.restore(latest, kind)
        return latest, float(tree["trained"]["w"][0]), progress


def test_logs_evaluates_and_saves_at_absolute_steps(tmp_path):
    """From step 3 on: multiples of the intervals, not intervals since the start, and the last step."""
    state, _, told = fit(tmp_path, start=3, total=11, values=[0.1] * 9, log_every=5, eval_every=4, save_every=3)
    assert int(state.step) == 11
    assert told.evals == [4, 8, 11] and told.saves == [4, 6, 8, 9, 11] and told.ended == 1
    assert sorted(told.logs) == [4, 5, 6, 8, 9, 10, 11]


def test_log_is_the_mean_since_the_last_line(tmp_path):
    """Losses are averaged, the rate is the last one; the checksum is that of the batches between."""
    _, _, told = fit(tmp_path, total=5, losses={1: 1.0, 2: 3.0, 3: 5.0, 4: 7.0, 5: 2.0})
    assert [told.logs[step]["loss"] for step in (2, 4, 5)] == [2.0, 6.0, 2.0]
    checksums = [told.logs[step]["batch_crc32"] for step in (2, 4, 5)]
    assert len(set(checksums)) == 3 and told.logs[2]["learning_rate"] == 0.5
    resumed = fit(tmp_path / "resumed", total=5, start=2)[2]
    assert [resumed.logs[step]["batch_crc32"] for step in (4, 5)] == checksums[1:]


@pytest.mark.parametrize("larger,values", [(True, [0.1, 0.5, 0.5, 0.4, 0.9]), (False, [0.9, 0.5, 0.5, 0.6, 0.1])])
def test_patience_counts_evaluations_without_a_better_metric(tmp_path, larger, values):
    """Equal is not better: two evaluations after the best it stops, saved, and does not go on when asked again."""
    _, progress, told = fit(tmp_path, total=20, values=values, patience=2, larger_is_better=larger)
    assert told.evals == told.saves == [2, 4, 6, 8]
    assert (progress.best, progress.since_best, progress.stopped_early) == (0.5, 2, True)
    latest, value, stored = on_disk(tmp_path)
    assert (latest, value) == (8, 8.0) and stored["stopped_early"] and stored["best"] == 0.5
    state, _, again = fit(tmp_path, total=20, start=8, progress=Progress(**stored))
    assert int(state.step) == 8 and again.ended == 0


def test_a_better_metric_resets_patience(tmp_path):
    """Runs to the end."""
    state, progress, _ = fit(tmp_path, total=10, values=[0.1, 0.0, 0.2, 0.1, 0.3], patience=2)
    assert int(state.step) == 10 and progress.best == 0.3 and progress.since_best == 0


def test_patience_goes_on_after_a_restart(tmp_path):
    """What was counted before counts still."""
    _, progress, told = fit(tmp_path, start=4, total=20, values=[0.4], patience=2, progress=Progress(0.5, 1))
    assert told.evals == [6] and progress.stopped_early


def test_the_best_checkpoint_is_known(tmp_path):
    """By the metric it was saved with."""
    fit(tmp_path, values=[0.1, 0.9, 0.5])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best() == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stops_and_leaves_the_last_good_checkpoint(tmp_path, bad):
    """The message names the steps, the log shows the value, nothing of it is saved or evaluated."""
    told = Told()
    with pytest.raises(FloatingPointError, match=rf"loss became {bad} in steps 5 to 6.*learning_rate"):
        fit(tmp_path, losses={5: bad}, values=[0.1] * 9, told=told, total=20)
    assert not np.isfinite(told.logs[6]["loss"]) and told.evals == told.saves == [2, 4] and told.ended == 1
    assert on_disk(tmp_path)[:2] == (4, 4.0)


def test_nan_is_seen_before_an_evaluation_between_two_lines_of_the_log(tmp_path):
    """The metric of a ruined network is not asked for."""
    told = Told()
    with pytest.raises(FloatingPointError, match="in steps 3 to 4"):
        fit(tmp_path, losses={3: float("nan")}, values=[0.1, float("nan")], told=told, log_every=100)
    assert told.evals == [2]


def test_an_undefined_metric_is_told(tmp_path):
    """A NaN from a sound network is the split's fault, not the loss'."""
    with pytest.raises(UserError, match="train.metric: is undefined on the validation split"):
        fit(tmp_path, values=[float("nan")])


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number, code):
    """The checkpoint is of the step in which it came; the next start goes on from there to the end."""

    def act(step):
        if step == 4:
            os.kill(os.getpid(), number)

    told = Told(act)
    before = signal.getsignal(number)
    with StopRequest() as stop, pytest.raises(Stopped) as stopped:
        fit(tmp_path, stop=stop, told=told)
    assert (stopped.value.step, stopped.value.exit_code) == (4, code)
    assert told.saves == [4] and told.ended == 1 and signal.getsignal(number) is before
    latest, value, stored = on_disk(tmp_path)
    assert (latest, value) == (4, 4.0)
    state, _, _ = fit(tmp_path, start=4, progress=Progress(**stored))
    assert int(state.step) == 6 and stored["seconds"] > 0


def test_a_second_signal_ends_at_once(monkeypatch):
    """Without waiting for the step."""
    ended = []
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_code == 130 and not ended
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [75]


def test_a_stop_request_in_another_thread_takes_no_signal():
    """Only the main thread may; elsewhere it never asks."""
    seen = []

    def body():
        with StopRequest() as stop:
            seen.append((stop.exit_code, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_an_exception_in_the_data_ends_the_loop_in_order(tmp_path):
    """The source is closed and callbacks hear of the end."""
    closed, told = [], Told()

    def source(first, last):
        try:
            yield 1, 1.0
            raise OSError("record 7 is broken")
        finally:
            closed.append(True)

    with Checkpoints(tmp_path) as checkpoints, pytest.raises(OSError, match="record 7"):
        loop.fit(
            state_at(0),
            Progress(),
            step=a_step,
            batches=source,
            batch_ids=lambda number: np.arange(2),
            evaluate=None,
            checkpoints=checkpoints,
            saved=lambda state: state.moving,
            pace=Pace(4, 1, 1, 1, None),
            callbacks=[told],
        )
    assert closed == [True] and told.ended == 1
