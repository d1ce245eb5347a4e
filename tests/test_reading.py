# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run that waits for its batches says so and what to do; one that does not is silent."""

import time
import types

import makers
import pytest

from tl_jax import evaluation, reading, runs
from tl_jax.data.images import ImageTransform
from tl_jax.engine import Engine, build
from tl_jax.report import metrics
from tl_jax.train import waiting
from tl_jax.train.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def exp(tmp_path):
    """Sixteen steps of pictures that the host changes in every epoch, read by one thread."""
    exp = makers.image_run(tmp_path, epochs=None, steps=16, accumulate=1, log_every=4, eval_every=100)
    return makers.changed(exp, data__threads=1, data__augment=("rand",))


def shares(folder):
    """`waited` of every line of training that has it."""
    return [line["waited"] for line in metrics.read(folder) if "waited" in line]


def test_a_slow_transform_is_seen_as_waiting(exp, tmp_path, monkeypatch, capsys):
    """50 ms a batch, where steps take a few: in every line of the log, in the summary and in one line."""
    collate = ImageTransform.collate

    def slowly(self, *given):
        time.sleep(0.05)
        return collate(self, *given)

    monkeypatch.setattr(ImageTransform, "collate", slowly)
    monkeypatch.setattr(reading, "cores", lambda: 64)
    summary = runs.run(exp, tmp_path / "run")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("waited for batches")]
    # A busy machine makes the steps slower, but the sleep is of the reading thread alone.
    assert summary["waited"] > 0.05 and min(shares(tmp_path / "run")) > 0.05
    assert len(told) == 1 and "data.threads=" in told[0] and f"{summary['waited']:.0%} of the time" in told[0]


def test_a_run_whose_batches_are_there_says_nothing(exp, tmp_path, monkeypatch, capsys):
    """By a clock on which steps take a second, evaluations an hour and nothing else any time: the share is logged all
    the same, and is one of the steps after the first."""
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(waiting, "time", clock)

    def taking(seconds, function):
        def called(*given, **options):
            clock.now += seconds
            return function(*given, **options)

        return called

    monkeypatch.setattr(Engine, "train_step", taking(1, Engine.train_step))
    monkeypatch.setattr(evaluation, "measure", taking(3600, evaluation.measure))
    summary = runs.run(exp, tmp_path / "run")
    assert "waited for" not in capsys.readouterr().err
    assert summary["waited"] == 0 and shares(tmp_path / "run") == [0.0] * 4
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.progress(checkpoints.latest())["stepping"] == 15


@pytest.mark.parametrize(
    "threads,waited,cores,expected",
    [
        (1, 0.75, 4, "data.threads=4 would read"),
        (0, 0.75, 4, "data.threads=4 would read"),
        (2, 0.1, 4, "data.threads=3 would read"),
        (2, 0.75, 4, "data.threads=4 would shorten it, 8 would end it, and there are no more cores than 4"),
        (4, 0.75, 4, "16 threads would end it, and there are no more cores than 4"),
    ],
)
def test_threads_go_by_what_they_read_in_the_time_of_the_steps(exp, monkeypatch, threads, waited, cores, expected):
    """Those that read now, over the share in which the devices computed."""
    monkeypatch.setattr(reading, "cores", lambda: cores)
    told = reading.advice(build(makers.changed(exp, data__threads=threads)), waited * 8, 8.0)
    assert told.startswith(f"waited for batches {waited:.0%} of the time: {expected}")


def test_a_set_that_fits_may_stay_on_the_devices(exp):
    """Where it is read again and does not change; once it stays, there is nothing to say."""
    fixed = makers.changed(exp, data__augment=())
    engine = build(fixed)
    assert reading.advice(engine, 0.4, 10.0) is None
    assert "train.resident=on" in reading.advice(engine, 4.0, 10.0)
    assert "train.resident" not in reading.advice(build(makers.changed(fixed, train__steps=2)), 4.0, 10.0)
    assert reading.advice(build(makers.changed(fixed, train__resident="on")), 4.0, 10.0) is None
