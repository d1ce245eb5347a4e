# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules against their formulas in NumPy, at the ends, and against Optax where it has the same curve."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl_jax.config import Optimizer
from tl_jax.train import schedule

# The rate is float32 arithmetic on numbers below 1: a few roundings of 6e-8.
_TOLERANCE = dict(rtol=1e-6, atol=1e-9)


def _rates(opt: Optimizer, steps: int) -> np.ndarray:
    rate = schedule.build(opt, steps)
    return np.array([rate(step) for step in range(steps)])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_follow_the_formula(name, warmup):
    """Warm-up in a straight line, then the named curve down to `final`."""
    steps, peak, final = 20, 3e-4, 0.1
    got = _rates(Optimizer(learning_rate=peak, schedule=name, warmup=warmup, final=final), steps)

    top = round(warmup * steps)
    x = np.arange(steps - top) / (steps - 1 - top)
    curve = {"constant": 0 * x, "linear": x, "cosine": 0.5 * (1 - np.cos(np.pi * x))}[name]
    expected = peak * np.concatenate([np.arange(top) / max(top, 1), 1 - (1 - final) * curve])
    np.testing.assert_allclose(got, expected, **_TOLERANCE)


def test_cosine_equals_optax():
    """The curve is optax.warmup_cosine_decay_schedule, whose decay_steps is our last step."""
    got = _rates(Optimizer(learning_rate=1e-3, warmup=0.2, final=0.05), 30)
    oracle = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup_steps=6, decay_steps=29, end_value=5e-5)
    np.testing.assert_allclose(got, [oracle(step) for step in range(30)], **_TOLERANCE)


def test_one_cycle_follows_fastai():
    """Up from 1/25 over a quarter, down to 1e-5, both along a cosine, where nothing else is asked for."""
    got = _rates(Optimizer(learning_rate=0.1, schedule="one_cycle"), 41)

    def cosine(start, end, x):
        return start + (1 + np.cos(np.pi * (1 - x))) * (end - start) / 2

    rise = cosine(0.1 / 25, 0.1, np.arange(10) / 10)
    expected = np.concatenate([rise, cosine(0.1, 1e-6, np.arange(31) / 30)])
    # Near the end 1 minus a fall of almost 1 cancels: absolute, against a peak of 0.1.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)


def test_a_later_start_moves_the_curve():
    """The second phase of fastai's `fine_tune` after 7 steps: up from a fifth, as it would be from 0."""
    opt = Optimizer(learning_rate=0.1, schedule="one_cycle", warmup=0.3, initial=0.2)
    later = schedule.build(opt, 20, start=7)
    got = np.array([later(step) for step in range(7, 27)])
    np.testing.assert_array_equal(got, _rates(opt, 20))
    np.testing.assert_allclose([got[0], got[6]], [0.02, 0.1], rtol=1e-6)
    # Half way up a cosine.
    np.testing.assert_allclose(got[3], 0.06, rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "one_cycle"])
def test_peak_is_exact_and_reached_at_the_end_of_warm_up(name):
    """The configured rate itself is used, to the last bit."""
    got = _rates(Optimizer(learning_rate=1.7e-4, schedule=name, warmup=0.25, final=0.3), 16)
    assert got[4] == got.max() == np.float32(1.7e-4)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_last_step_and_beyond_run_at_final(name):
    """The end is reached within the run, and a step after it does not fall further."""
    rate = schedule.build(Optimizer(learning_rate=1.0, schedule=name, warmup=0.1, final=0.0), 12)
    assert rate(11) == 0.0 and rate(1000) == 0.0 and rate(10) > 0.0


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.99])
def test_single_step_runs_at_the_peak(name, warmup):
    """A run of one step is neither all warm-up nor already at its end."""
    assert _rates(Optimizer(learning_rate=0.5, schedule=name, warmup=warmup), 1) == 0.5


def test_no_warm_up_starts_at_the_peak():
    """With warm-up 0 the first update already has the full rate."""
    assert _rates(Optimizer(learning_rate=0.5, warmup=0.0), 10)[0] == 0.5


def test_long_warm_up_still_reaches_the_peak():
    """A share that rounds to every step leaves the last one at the peak."""
    got = _rates(Optimizer(learning_rate=0.5, warmup=0.99), 10)
    assert got[-1] == 0.5 and (np.diff(got) > 0).all()


def test_traced_step_gives_the_same_rate():
    """Inside jit the step is an int32 array."""
    rate = schedule.build(Optimizer(), 50)
    # Fusing may round the last bit differently.
    np.testing.assert_allclose(jax.jit(rate)(jnp.int32(7)), rate(7), rtol=1e-6)
