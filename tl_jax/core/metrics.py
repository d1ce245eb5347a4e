# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics over whole evaluation sets, on the host, with their bootstrap intervals.

    weights = resamples(len(labels), seed=0)                  # float64[R, N], row 0 is the set itself
    low, high = interval(accuracy(predicted, labels, weights))

Every metric takes weights [R, N] and returns [R], so a resample is a row of counts and an interval costs one matrix
product instead of R evaluations.
"""

# R resamples, N examples, C classes

import numpy as np


def resamples(count: int, seed: int, repeats: int = 1000) -> np.ndarray:
    """How often each example stands in each bootstrap resample: float64[1 + repeats, count]; row 0 is all ones."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=repeats)
    return np.concatenate([np.ones((1, count)), drawn.astype(np.float64)])


def interval(values_R: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval over resamples (all rows but the first), undefined ones left out; NaN if none is."""
    defined = values_R[1:][np.isfinite(values_R[1:])]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def accuracy(predicted: np.ndarray, labels: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Share of examples whose prediction is right; of [N, C] labels, those right in every class."""
    right = predicted == labels
    right_N = right if right.ndim == 1 else right.all(axis=1)
    return weights_RN @ right_N / weights_RN.sum(axis=1)


def f1(predicted_NC: np.ndarray, labels_NC: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """F1 of every class, [R, C]: 2 TP / (2 TP + FP + FN); 0 where a class is neither present nor predicted."""
    predicted_NC, labels_NC = predicted_NC.astype(np.float64), labels_NC.astype(np.float64)
    hits_RC = weights_RN @ (predicted_NC * labels_NC)
    total_RC = weights_RN @ (predicted_NC + labels_NC)
    return np.divide(2 * hits_RC, total_RC, out=np.zeros_like(hits_RC), where=total_RC > 0)


def auroc(scores_N: np.ndarray, labels_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, [R]: the chance that a positive scores above a negative, ties counted half.

    NaN where a resample has no positive or no negative example.
    """
    order = np.argsort(scores_N, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores_N[order]) > 0])
    positive_RN = weights_RN[:, order] * labels_N[order].astype(np.float64)
    tied_pos = np.add.reduceat(positive_RN, starts, axis=1)
    tied_neg = np.add.reduceat(weights_RN[:, order] - positive_RN, starts, axis=1)
    below_neg = np.cumsum(tied_neg, axis=1) - tied_neg
    pairs = tied_pos.sum(axis=1) * tied_neg.sum(axis=1)
    wins = (tied_pos * (below_neg + tied_neg / 2)).sum(axis=1)
    return np.divide(wins, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def one_hot(labels_N: np.ndarray, classes: int) -> np.ndarray:
    """int[N] -> bool[N, C]."""
    return labels_N[:, None] == np.arange(classes)


def confusion(predicted_N: np.ndarray, labels_N: np.ndarray, classes: int) -> np.ndarray:
    """int64[C, C]: rows are true classes, columns predicted ones."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (labels_N, predicted_N), 1)
    return table
