# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Calibration against definitions written out in loops, SciPy, and cases whose answer is known."""

import math

import numpy as np
import pytest

from tl_jax.core import calibration, metrics

# N examples, C classes, R resamples
_N, _C = 200, 4


@pytest.fixture(params=[False, True], ids=["one label", "several labels"])
def data(request):
    """(float32 logits, labels) of a model that knows something and is too sure of it."""
    rng = np.random.default_rng(0)
    logits_NC = rng.normal(size=(_N, _C))
    if request.param:
        labels = (rng.random((_N, _C)) < 1 / (1 + np.exp(-logits_NC))).astype(np.float32)
    else:
        chances_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
        labels = np.array([rng.choice(_C, p=chances_C) for chances_C in chances_NC])
    return (2.5 * logits_NC).astype(np.float32), labels


def answers(logits_NC, labels):
    """[(probability of each answer, the right one)] of every question, one by one."""
    found = []
    for logits_C, label in zip(logits_NC.astype(np.float64), labels):
        if np.ndim(label) == 0:
            found.append((np.exp(logits_C) / np.exp(logits_C).sum(), int(label)))
        else:
            found += [(np.array([1 - p, p]), int(y)) for p, y in zip(1 / (1 + np.exp(-logits_C)), label)]
    return found


def ece_by_definition(logits_NC, labels, bins):
    """|accuracy - confidence| of each bin, weighted by the answers in it."""
    tops = [(chances.max(), chances.argmax() == right) for chances, right in answers(logits_NC, labels)]
    total = 0.0
    for i in range(bins):
        inside = [(top, right) for top, right in tops if i / bins < top <= (i + 1) / bins]
        if inside:
            top, right = np.mean(inside, axis=0)
            total += len(inside) / len(tops) * abs(right - top)
    return total


@pytest.mark.parametrize("bins", [15, 4])
def test_ece_equals_its_definition(data, bins):
    """Bin by bin, in one loop over answers."""
    found = calibration.ece(*data, np.ones((1, _N)), bins)
    # Sums of some hundred float64 numbers in another order.
    np.testing.assert_allclose(found, [ece_by_definition(*data, bins)], rtol=1e-10)


def test_a_weight_is_a_repetition(data):
    """What a row of counts gives is what the examples give when they stand there so often."""
    logits_NC, labels = data
    weights_RN = metrics.resamples(_N, seed=1, repeats=3)
    for measure in (calibration.ece, calibration.nll):
        found_R = measure(logits_NC, labels, weights_RN)
        for weights_N, value in zip(weights_RN, found_R):
            rows = np.repeat(np.arange(_N), weights_N.astype(int))
            again = measure(logits_NC[rows], labels[rows], np.ones((1, len(rows))))
            np.testing.assert_allclose(again, [value], rtol=1e-10)


def test_ece_of_known_cases():
    """Always half sure: wrong half of the time costs nothing, always right a half; a probability on an edge belongs to
    the bin below."""
    even = np.zeros((4, 2))
    assert calibration.ece(even, np.array([0, 1, 0, 1]), np.ones((1, 4))) == [0.0]
    assert calibration.ece(even, np.array([0, 0, 0, 0]), np.ones((1, 4))) == [0.5]
    # Half sure and wrong, nearly two thirds sure and right: apart with an edge at one half, one bin without.
    logits = np.array([[0.0, 0.0], [0.5, 0.0]])
    sure = 1 / (1 + math.exp(-0.5))
    for bins, expected in ((2, (0.5 + (1 - sure)) / 2), (1, abs(1 - (0.5 + sure)) / 2)):
        found = calibration.ece(logits, np.array([1, 0]), np.ones((1, 2)), bins)
        np.testing.assert_allclose(found, [expected], rtol=1e-12)


def test_nll_equals_its_definition(data):
    """Minus the mean logarithm of the right answers' probabilities."""
    expected = -np.mean([np.log(chances[right]) for chances, right in answers(*data)])
    np.testing.assert_allclose(calibration.nll(*data, np.ones((1, _N))), [expected], rtol=1e-10)


def test_the_temperature_is_where_scipy_finds_the_minimum(data):
    """A search that knows no derivative, over the definition."""
    from scipy.optimize import minimize_scalar

    logits_NC, labels = data

    def loss(log_t):
        return -np.mean([np.log(p[right]) for p, right in answers(logits_NC / np.exp(log_t), labels)])

    found = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-7})
    # Near a minimum a loss tells arguments apart to the root of its own precision, about 1e-8.
    np.testing.assert_allclose(calibration.temperature(logits_NC, labels), np.exp(found.x), rtol=1e-6)


@pytest.mark.parametrize("scale", [3.0, 0.01, 1.0, 1e4])
def test_the_temperature_of_scaled_logits_is_the_scale(scale):
    """Labels as frequent as their probabilities say want a temperature of 1, and their logits times 3 one of 3."""
    counts = np.array([[12, 6, 2], [1, 4, 15]])
    logits = np.repeat(np.log(counts / 20), 20, axis=0)
    labels = np.concatenate([np.repeat(np.arange(3), row) for row in counts])
    # The slope is summed over 40 questions in float64, the curvature is of order 1.
    np.testing.assert_allclose(calibration.temperature(scale * logits, labels), scale, rtol=1e-10)


def test_the_temperature_of_scaled_yes_or_no_logits_is_the_scale():
    """The same with two classes that are each a question of its own."""
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
    logits = np.tile(np.log([3.0, 1 / 3.0]), (4, 1))
    np.testing.assert_allclose(calibration.temperature(3 * logits, labels), 3.0, rtol=1e-10)


@pytest.mark.parametrize(
    "labels, expected",
    [([0, 0, 0], 0.0), ([1, 1, 0], math.inf), ([0, 1, 0], 2 / math.log(2))],
    ids=["all right", "mostly wrong", "one of three wrong"],
)
def test_the_temperature_has_an_end(labels, expected):
    """Two in three right wants odds of 2 to 1; without any mistake, or with more mistakes than hits, none is best."""
    logits = np.tile([2.0, 0.0], (3, 1))
    assert calibration.temperature(logits, np.array(labels)) == pytest.approx(expected, rel=1e-10)


def test_logits_that_say_nothing_keep_their_temperature():
    """Equal for all answers, at any temperature."""
    assert calibration.temperature(np.full((3, 2), 7.0), np.array([0, 1, 1])) == 1.0
