# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whether probabilities mean what they say, and the one number that mends most of it, on the host in float64.

    error = ece(logits_NC, labels, resamples(len(labels), seed=0))          # [R], as every metric
    t = temperature(validation_logits_NC, validation_labels)                # then predict from logits / t

Labels int[N] make one question with C answers of an example, labels [N, C] of 0 and 1 make C questions with two answers
each, whose logits are 0 and the class's. Dividing logits by a temperature changes no answer.
"""

# N examples, C classes, Q questions an example, K answers of a question, R resamples, B bins

import math

import numpy as np


def ece(logits_NC: np.ndarray, labels: np.ndarray, weights_RN: np.ndarray, bins: int = 15) -> np.ndarray:
    """Expected calibration error of the likeliest answer (Naeini et al. 2015; Guo et al. 2017), [R].

    Answers are sorted by their probability into bins of equal width, open below and closed above; the error is the mean
    over answers of how far a bin's share of right ones is from its mean probability.
    A bin of few answers is off by chance alone, and a resample more so: intervals lie high where examples are few.

    Args:
      logits_NC: float[N, C].
      labels: int[N] in [0, C), or 0 and 1 [N, C].
      weights_RN: how often each example counts; see `core.metrics`.
    """
    logits_NQK, labels_NQ = _questions(logits_NC, labels)
    # The likeliest answer's probability is the share of 1 in a sum whose largest term it is.
    top_NQ = 1 / np.exp(logits_NQK - logits_NQK.max(axis=-1, keepdims=True)).sum(axis=-1)
    right_NQ = logits_NQK.argmax(axis=-1) == labels_NQ
    bin_NQ = np.searchsorted(np.linspace(0, 1, bins + 1), top_NQ, side="left") - 1
    surplus_NB = np.zeros((len(labels), bins))
    np.add.at(surplus_NB, (np.arange(len(labels))[:, None], bin_NQ), right_NQ - top_NQ)
    return np.abs(weights_RN @ surplus_NB).sum(axis=1) / (weights_RN.sum(axis=1) * labels_NQ.shape[1])


def nll(logits_NC: np.ndarray, labels: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of the labels, over questions and examples, [R]; arguments as for `ece`."""
    logits_NQK, labels_NQ = _questions(logits_NC, labels)
    return weights_RN @ _losses(logits_NQK, labels_NQ).mean(axis=1) / weights_RN.sum(axis=1)


def temperature(logits_NC: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises `nll(logits / T)` (Guo et al. 2017), to 12 digits.

    The loss is convex in 1/T, so its slope has one root: Newton's method, halved back into what encloses the root.

    Args:
      logits_NC, labels: as for `ece`; all examples count once.

    Returns:
      T > 0; 0.0 where every answer is right, so that the loss falls with T to its very end; infinity where the logits
      are no better than none, so that it falls the other way; 1.0 where they are the same for all answers.
    """
    logits_NQK, labels_NQ = _questions(logits_NC, labels)
    # What a slope is made of: how far each answer's logit lies above that of the label.
    above_NQK = logits_NQK - _at(logits_NQK, labels_NQ)[..., None]
    scale = np.abs(above_NQK).max()
    if scale == 0:
        return 1.0
    above_NQK = above_NQK / scale
    if above_NQK.max() <= 0:
        return 0.0
    if above_NQK.mean() >= 0:
        return math.inf
    low, high = 0.0, 1.0
    while _slope(above_NQK, high)[0] < 0:
        low, high = high, 2 * high
    inverse = (low + high) / 2
    while high - low > 1e-12 * high:
        slope, curvature = _slope(above_NQK, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curvature if curvature > 0 else low
        if abs(newton - inverse) <= 1e-12 * inverse:
            break
        inverse = newton if low < newton < high else (low + high) / 2
    return float(scale / inverse)


def _slope(above_NQK: np.ndarray, inverse: float) -> tuple[float, float]:
    """First and second derivative of the loss by 1/T: the mean over questions of mean and variance of `above`."""
    chances_NQK = np.exp(inverse * (above_NQK - above_NQK.max(axis=-1, keepdims=True)))
    chances_NQK /= chances_NQK.sum(axis=-1, keepdims=True)
    mean_NQ = (chances_NQK * above_NQK).sum(axis=-1)
    variance_NQ = (chances_NQK * (above_NQK - mean_NQ[..., None]) ** 2).sum(axis=-1)
    return mean_NQ.mean(), variance_NQ.mean()


def _questions(logits_NC: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[N, Q, K] logits and int[N, Q] labels."""
    logits_NC = np.asarray(logits_NC, np.float64)
    if labels.ndim == 1:
        return logits_NC[:, None, :], labels[:, None].astype(np.int64)
    return np.stack([np.zeros_like(logits_NC), logits_NC], axis=-1), (labels > 0.5).astype(np.int64)


def _losses(logits_NQK: np.ndarray, labels_NQ: np.ndarray) -> np.ndarray:
    top_NQ = logits_NQK.max(axis=-1)
    total_NQ = np.exp(logits_NQK - top_NQ[..., None]).sum(axis=-1)
    return np.log(total_NQ) + top_NQ - _at(logits_NQK, labels_NQ)


def _at(logits_NQK: np.ndarray, labels_NQ: np.ndarray) -> np.ndarray:
    return np.take_along_axis(logits_NQK, labels_NQ[..., None], axis=-1)[..., 0]
