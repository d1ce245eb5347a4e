# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What counts as waiting for a batch, by a clock that the test sets; nothing here is timed."""

import threading
import time

import pytest

from tl_jax.train import waiting


class Clock:
    """Says what it was told, and yields batches that come late."""

    now = 100.0

    def perf_counter(self):
        """The time."""
        return self.now

    def batches(self, *gaps):
        """The time passes before each."""
        for number, happens in enumerate(gaps):
            happens()
            yield number


class Result:
    """Of a step that goes on until `finish`."""

    def __init__(self):
        self._over = threading.Event()
        self.finish = self._over.set

    def block_until_ready(self):
        """As arrays have it."""
        self._over.wait()


@pytest.fixture
def clock(monkeypatch):
    """In place of the real one."""
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


@pytest.fixture
def counter(clock):
    """What is tested, its thread ended."""
    counter = waiting.Waiting()
    yield counter
    counter.close()


def seen(counter, number):
    """Wait until the thread has noted that so many steps are done."""
    deadline = time.monotonic() + 10
    while counter._done[0] < number and time.monotonic() < deadline:
        time.sleep(1e-3)
    assert counter._done[0] == number


@pytest.mark.parametrize("done_at,expected", [(95.0, 10.0), (104.0, 6.0), (None, 0.0)])
def test_waiting_begins_when_the_devices_are_done(clock, counter, done_at, expected):
    """Asked at 100 and there at 110: all of it, the rest after the step, or nothing while the step goes on."""
    result = Result()

    def finish(at):
        clock.now = at
        result.finish()
        seen(counter, 1)

    def pass_time():
        if done_at is not None and done_at > 100:
            finish(done_at)
        clock.now = 110.0

    clock.now = 90.0
    counter.restart()
    counter.dispatched(result)
    if done_at is not None and done_at < 100:
        finish(done_at)
    clock.now = 100.0
    assert list(counter.over(clock.batches(pass_time))) == [0]
    assert counter.lap() == (expected, 20.0)
    result.finish()


def test_only_the_last_dispatched_step_counts(clock, counter):
    """One that is done says nothing while another is on its way."""
    first, second = Result(), Result()
    counter.dispatched(first)
    counter.dispatched(second)
    first.finish()
    seen(counter, 1)
    list(counter.over(clock.batches(lambda: setattr(clock, "now", 130.0))))
    assert counter.lap() == (0.0, 30.0)
    second.finish()


def test_a_lap_begins_where_the_last_one_ended(clock, counter):
    """Nothing is counted twice, and a lap without a batch has no share."""
    list(counter.over(clock.batches(lambda: setattr(clock, "now", 103.0))))
    assert counter.lap() == (3.0, 3.0) and counter.lap() is None
    list(counter.over(clock.batches(lambda: setattr(clock, "now", 110.0))))
    assert counter.lap() == (7.0, 7.0)
    list(counter.over(clock.batches(lambda: setattr(clock, "now", 120.0))))
    counter.restart()
    assert counter.lap() is None


def test_a_step_that_fails_leaves_the_error_to_the_loop(counter):
    """The thread ends without a word."""

    class Broken:
        def block_until_ready(self):
            raise RuntimeError("the device is gone")

    threads = {thread for thread in threading.enumerate() if thread.name == "tl_jax waiting"}
    counter.dispatched(Broken())
    for thread in threads:
        thread.join(10)
    assert list(counter.over(iter([1, 2]))) == [1, 2] and counter.lap()[0] == 0.0
