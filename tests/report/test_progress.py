# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Progress says the same on a terminal and in a file, and nothing when it is to be quiet."""

import io
import re
import time

import pytest

from tl_jax.report import progress

FACTS = {"loss": 0.41234567, "examples_per_second": 1234.4}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def seconds(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(stream, seconds, **options) -> str:
    """From step 100 to 120 of 200 in 40 s: 80 steps at 2 s are 2:40."""
    with progress.Progress(200, 100, stream, **options) as bar:
        bar.say("compiling the step [train] …")
        bar.update(100, FACTS)
        seconds[0] += 40
        bar.update(120, FACTS)
    return stream.getvalue()


def test_plain_lines_hold_every_fact(seconds):
    """One line a call, and no time left before there is a rate."""
    assert run(io.StringIO(), seconds).splitlines() == [
        "compiling the step [train] …",
        "step 100/200  loss 0.4123  1,234 examples/s",
        "step 120/200  loss 0.4123  1,234 examples/s  2:40 left",
    ]


def test_a_terminal_gets_a_bar_with_the_same_facts(monkeypatch):
    """What stays on screen, less colours and line width, is what the plain line says."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    started = time.monotonic()
    clock = [started]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", run(Terminal(), clock))
    last = text.strip().splitlines()[-1]
    assert "compiling the step [train] …" in text
    assert re.match(r"step 120/200 .*loss 0.4123  1,234 examples/s  2:40 left", last)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_writes_nothing(seconds, stream):
    """Not one byte, on a terminal either."""
    assert run(stream(), seconds, quiet=True) == ""


def test_nan_is_shown(seconds):
    """A loss that is no number is not hidden."""
    stream = io.StringIO()
    progress.Progress(2, 0, stream).update(1, {"loss": float("nan")})
    assert stream.getvalue() == "step 1/2  loss nan\n"


@pytest.mark.parametrize("given, text", [(0.4, "0:00"), (65, "1:05"), (3599.6, "1:00:00"), (90061, "25:01:01")])
def test_clock(given, text):
    """Seconds, minutes and hours, rounded before they are split."""
    assert progress.clock(given) == text
