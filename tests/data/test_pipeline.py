# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reading batches: resuming, processes, threads, errors, and nothing left running."""

import contextlib
import threading
import time

import numpy as np
import pytest

from tl_jax.core.errors import UserError
from tl_jax.data.batches import BatchPlan
from tl_jax.data.examples import Examples
from tl_jax.data.pipeline import batches, on_device


class Noisy:
    """A stand-in transform: the record's number, and a random draw where there is a generator."""

    def __call__(self, record, rng):
        return {"x": np.float32([record["text"], 0.0 if rng is None else rng.random()])}

    def collate(self, examples, length=None):
        return {"x": np.stack([example["x"] for example in examples])}


def make(number=10, labels=None, fail=None):
    def fetch(i):
        if i == fail:
            raise UserError(f"k{i}", "cannot be decoded")
        return {"text": i}

    return Examples(fetch, [f"k{i}" for i in range(number)], kind="text", classes=("a", "b"), labels=labels)


def read(examples, start, stop, rows=slice(None), threads=2, augment=True, size=4, seed=5):
    plan = BatchPlan(len(examples), size, seed=1, shuffle=True)
    options = {"start": start, "stop": stop, "rows": rows, "seed": seed, "augment": augment, "threads": threads}
    return batches(examples, Noisy(), plan, **options)


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_batch_holds_what_the_step_needs():
    """Arrays, labels, weights and ids belong together, row by row."""
    labels = np.arange(10) % 2
    for batch in read(make(labels=labels), 0, 6, augment=False):
        np.testing.assert_array_equal(batch["x"][:, 0], batch["id"])
        np.testing.assert_array_equal(batch["label"], labels[batch["id"]])
        assert batch["label"].dtype == batch["id"].dtype == np.int32 and batch["weight"].dtype == np.float32
    (many,) = read(make(labels=np.ones((10, 2), np.float32)), 0, 1)
    assert many["label"].shape == (4, 2) and many["label"].dtype == np.float32
    (unlabelled,) = read(make(), 0, 1)
    assert "label" not in unlabelled


@pytest.mark.parametrize("threads", [0, 3])
def test_resuming_is_starting_at_another_step(threads):
    """Augmentation included, from the middle of an epoch, with any number of threads."""
    whole = list(read(make(), 0, 9))
    assert_equal(list(read(make(), 4, 9, threads=threads)), whole[4:])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_see_parts_of_the_same_batches(processes):
    """Rows put together again are the batches of one process, augmentation included."""
    whole = list(read(make(), 0, 5))
    parts = [list(read(make(), 0, 5, rows=np.arange(4)[p::processes])) for p in range(processes)]
    for step, expected in enumerate(whole):
        for name in expected:
            got = np.zeros_like(expected[name])
            for p in range(processes):
                got[p::processes] = parts[p][step][name]
            np.testing.assert_array_equal(got, expected[name])


def test_no_steps_give_no_batches():
    """A run that is resumed at its end."""
    assert list(read(make(), 3, 3)) == []


def test_augmentation_differs_by_row_and_step_and_seed():
    """No two draws are alike, and evaluation draws none."""
    draws = np.concatenate([batch["x"][:, 1] for batch in read(make(), 0, 6)])
    other = np.concatenate([batch["x"][:, 1] for batch in read(make(), 0, 6, seed=6)])
    assert len(set(draws) | set(other)) == 48
    assert not any(batch["x"][:, 1].any() for batch in read(make(), 0, 3, augment=False))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_a_thread_reaches_the_caller_as_itself(threads):
    """With its own words, after the batches before it, and no thread is left waiting."""
    stream = read(make(fail=3), 0, 3, threads=threads)
    with pytest.raises(UserError) as error:
        list(stream)
    # Grain adds a note to the exception, which no one-line report prints.
    assert str(error.value) == "k3: cannot be decoded."


@pytest.mark.parametrize("use", ["all", "one", "none"])
def test_no_thread_is_left(use):
    """Read to the end, left in the middle, or never started."""
    before = set(threading.enumerate())
    with contextlib.closing(on_device(read(make(), 0, 50), lambda batch: batch)) as stream:
        {"all": list, "one": next, "none": iter}[use](stream)
    deadline = time.time() + 5  # Grain cancels what waits and does not wait for what runs
    while set(threading.enumerate()) - before and time.time() < deadline:
        time.sleep(0.01)
    assert not [t for t in set(threading.enumerate()) - before if "grain" in t.name]


def test_on_device_keeps_ahead_and_in_order():
    """Two batches are put before the first is handed out, none is lost, and the source is closed."""
    log, closed = [], []

    def source():
        try:
            yield from range(5)
        finally:
            closed.append(True)

    stream = on_device(source(), lambda item: log.append(item) or -item)
    assert next(stream) == 0 and log == [0, 1]
    assert list(stream) == [-1, -2, -3, -4] and closed
    assert list(on_device(iter_empty(), lambda item: item)) == []


def iter_empty():
    yield from ()
