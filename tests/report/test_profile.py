# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A trace of some steps: it is there, it holds those steps and no others, and the run is the same without it."""

import jax
import makers
import pytest

from tl_jax import config, runs
from tl_jax.core.errors import UserError
from tl_jax.report import profile

pytestmark = pytest.mark.usefixtures("one_device")


class Profiler:
    """In place of JAX's: what was asked of it."""

    def __init__(self, monkeypatch):
        self.heard = []
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: self.heard.append("start"))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self.heard.append("stop"))

    def step(self, state, batch):
        """Counts."""
        self.heard.append(state + 1)
        return state + 1, {}


@pytest.mark.parametrize(
    "span,done,steps,heard",
    [
        ((2, 3), 0, 4, [1, "start", 2, 3, "stop", 4]),
        ((2, 3), 2, 2, ["start", 3, "stop", 4]),
        ((2, 3), 3, 1, [4]),
        ((2, 9), 0, 3, [1, "start", 2, 3, "stop"]),
        (None, 0, 2, [1, 2]),
    ],
)
def test_the_trace_holds_these_steps(monkeypatch, span, done, steps, heard):
    """From the first to the last asked for, in a run that goes on too, and ends with the block at the latest."""
    profiler = Profiler(monkeypatch)
    with profile.traced(profiler.step, span, "nowhere", done) as step:
        state = done
        for _ in range(steps):
            state, _ = step(state, None)
    assert profiler.heard == heard


def test_a_trace_is_written_when_the_loop_fails(monkeypatch):
    """What was traced until then, and the error goes on."""
    profiler = Profiler(monkeypatch)
    with pytest.raises(FloatingPointError), profile.traced(profiler.step, (1, 9), "nowhere", 0) as step:
        step(0, None)
        raise FloatingPointError
    assert profiler.heard == ["start", 1, "stop"]


def test_a_run_is_the_same_with_a_trace(tmp_path):
    """The folder holds a trace, all metrics are bit-equal, and a finished run does not mind the flag."""
    exp = makers.changed(makers.image_run(tmp_path, epochs=None, steps=4, accumulate=1), data__threads=0)
    plain = runs.run(exp, tmp_path / "plain", quiet=True)
    traced = runs.run(makers.changed(exp, profile="2:3"), tmp_path / "traced", quiet=True)
    assert [path.suffix for path in (tmp_path / "traced" / "profile").rglob("*.xplane.pb")] == [".pb"]
    assert not (tmp_path / "plain" / "profile").exists()
    clock = ("seconds", "compile_seconds", "test_seconds", "waited")
    assert {k: v for k, v in plain.items() if k not in clock} == {k: v for k, v in traced.items() if k not in clock}
    assert runs.run(exp, tmp_path / "traced", quiet=True) == traced


@pytest.mark.parametrize("text", ["10", "5:4", "0:3", "a:b", "1:2:3", "-1:2"])
def test_wrong_spans_are_told_by_the_config(tmp_path, text):
    """FIRST:LAST, counted from 1."""
    exp = makers.changed(makers.image_run(tmp_path), profile=text)
    with pytest.raises(UserError, match="must be FIRST:LAST"):
        config.validate(exp)


def test_steps_that_the_run_has_not_are_told_before_it_starts(tmp_path):
    """Nothing but the folder's lock was there, and it is gone."""
    exp = makers.changed(makers.image_run(tmp_path, epochs=None, steps=4), profile="3:5")
    with pytest.raises(UserError, match="the run has 4 steps"):
        runs.run(exp, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
