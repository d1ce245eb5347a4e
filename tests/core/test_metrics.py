# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics against scikit-learn; weights against examples that are really repeated."""

import numpy as np
import pytest

from tl_jax.core import metrics

# N examples, C classes, R resamples
_N, _C = 40, 4


@pytest.fixture
def data():
    """Labels, predictions, and scores of which many are tied."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, _C, _N)
    predicted_N = np.where(rng.random(_N) < 0.6, labels_N, rng.integers(0, _C, _N))
    return labels_N, predicted_N, np.round(rng.random(_N) + 0.3 * (labels_N == 1), 1)


def ones(count=_N):
    """Each example once."""
    return np.ones((1, count))


def macro_f1(predicted_N, labels_N, weights_RN):
    """Mean over classes."""
    one_hot = (metrics.one_hot(x, _C) for x in (predicted_N, labels_N))
    return metrics.f1(*one_hot, weights_RN).mean(axis=1)


def test_metrics_equal_scikit_learn(data):
    """Accuracy, F1 by class, AUROC with ties, the confusion matrix."""
    import sklearn.metrics as sklearn

    labels_N, predicted_N, scores_N = data
    assert len(np.unique(scores_N)) < _N / 2
    # Quotients of small integers: a few roundings.
    close = {"rtol": 1e-12}
    np.testing.assert_allclose(
        metrics.accuracy(predicted_N, labels_N, ones()), sklearn.accuracy_score(labels_N, predicted_N), **close
    )
    np.testing.assert_allclose(
        macro_f1(predicted_N, labels_N, ones()), sklearn.f1_score(labels_N, predicted_N, average="macro"), **close
    )
    np.testing.assert_allclose(
        metrics.auroc(scores_N, labels_N == 1, ones()), sklearn.roc_auc_score(labels_N == 1, scores_N), **close
    )
    np.testing.assert_array_equal(
        metrics.confusion(predicted_N, labels_N, _C), sklearn.confusion_matrix(labels_N, predicted_N)
    )


def test_multi_label_accuracy_is_of_whole_rows():
    """scikit-learn's subset accuracy."""
    import sklearn.metrics as sklearn

    truth_NC, predicted_NC = np.random.default_rng(0).random((2, _N, 2)) > 0.5
    expected = sklearn.accuracy_score(truth_NC, predicted_NC)
    np.testing.assert_allclose(metrics.accuracy(predicted_NC, truth_NC, ones()), expected, rtol=1e-12)


def test_a_weight_is_a_repetition(data):
    """Every metric under counts equals itself over examples written out as often, also none at all."""
    labels_N, predicted_N, scores_N = data
    weights_RN = metrics.resamples(_N, seed=1, repeats=5)
    found = {
        "accuracy": metrics.accuracy(predicted_N, labels_N, weights_RN),
        "f1": macro_f1(predicted_N, labels_N, weights_RN),
        "auroc": metrics.auroc(scores_N, labels_N == 1, weights_RN),
    }
    for row, counts_N in enumerate(weights_RN.astype(int)):
        index = np.repeat(np.arange(_N), counts_N)
        labels, predicted, scores = labels_N[index], predicted_N[index], scores_N[index]
        expected = {
            "accuracy": metrics.accuracy(predicted, labels, ones(len(index))),
            "f1": macro_f1(predicted, labels, ones(len(index))),
            "auroc": metrics.auroc(scores, labels == 1, ones(len(index))),
        }
        for name in found:
            np.testing.assert_allclose(found[name][row], expected[name][0], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_area_of_one_class_is_undefined(labels):
    """NaN, without a warning."""
    assert np.isnan(metrics.auroc(np.arange(3.0), np.array(labels), ones(3))).all()


def test_f1_of_a_class_that_is_nowhere_is_zero():
    """As scikit-learn's `zero_division=0`."""
    empty = np.zeros((3, 1), bool)
    assert metrics.f1(empty, empty, ones(3)) == 0


def test_resamples_draw_as_many_as_there_are():
    """Row 0 is the set itself; the others sum to it, and the seed decides them."""
    weights_RN = metrics.resamples(_N, seed=0, repeats=50)
    assert weights_RN.shape == (51, _N) and (weights_RN[0] == 1).all()
    assert (weights_RN.sum(axis=1) == _N).all() and (weights_RN[1:] != 1).any(axis=1).all()
    np.testing.assert_array_equal(weights_RN, metrics.resamples(_N, seed=0, repeats=50))
    assert (weights_RN != metrics.resamples(_N, seed=1, repeats=50)).any()


def test_interval_is_that_of_a_plain_bootstrap():
    """Resampling in a loop, gives the same ends."""
    rng = np.random.default_rng(0)
    right_N = rng.random(200) < 0.8
    weights_RN = metrics.resamples(200, seed=0, repeats=20_000)
    low, high = metrics.interval(metrics.accuracy(right_N, np.ones(200, bool), weights_RN))
    loop = [rng.choice(right_N, 200).mean() for _ in range(20_000)]
    # Shares come in steps of 0.005; the quantiles of two sets of 20,000 draws differ by 0.0008 (one deviation).
    np.testing.assert_allclose([low, high], np.quantile(loop, [0.025, 0.975]), atol=0.0075)
    assert low < right_N.mean() < high


def test_interval_covers_as_often_as_it_says():
    """Of 200 sets drawn with 80 % right, the 90 % interval holds the 80 % in about 180."""
    rng = np.random.default_rng(0)
    weights_RN = metrics.resamples(100, seed=0, repeats=300)
    covered = 0
    for _ in range(200):
        values_R = metrics.accuracy(rng.random(100) < 0.8, np.ones(100, bool), weights_RN)
        low, high = metrics.interval(values_R, level=0.9)
        covered += low <= 0.8 <= high
    # Binomial deviation 4.2; percentile intervals of 100 examples run a few points short.
    assert 160 <= covered <= 192


def test_interval_leaves_out_undefined_resamples():
    """NaN where there is none."""
    assert metrics.interval(np.array([0.0, np.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert np.isnan(metrics.interval(np.array([0.0, np.nan]))).all()
