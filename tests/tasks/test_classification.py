# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Classification: losses by NumPy in float64, features by hand, labels and predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tl_jax.core.chain import EVAL, Context, Mode
from tl_jax.core.errors import UserError
from tl_jax.tasks.classification import Config, Task, pooled

# B batch, T time, D width, C classes
_POOLS = ("pooler", "cls", "mean")


def task(classes=3, **options) -> Task:
    """Classes a, b, c, ..."""
    return Task(Config(**options), tuple("abcdefgh"[:classes]), _POOLS)


def logits(rows=6, classes=3, scale=5.0):
    """Some large enough that a naive exponential would lose them."""
    return (np.random.default_rng(0).normal(size=(rows, classes)) * scale).astype(np.float32)


def test_loss_of_one_label_is_that_of_numpy():
    """Cross-entropy and accuracy of each example."""
    logits_BC, labels_B = logits(), np.array([0, 1, 2, 0, 1, 2], np.int32)
    found, metrics = task().loss({"logits": jnp.asarray(logits_BC)}, {"label": labels_B})
    wide = logits_BC.astype(np.float64)
    expected = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(6), labels_B]
    assert found.dtype == jnp.float32 and found.shape == (6,)
    # Float32 with numbers of order 10.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(metrics["accuracy"], wide.argmax(axis=1) == labels_B)


def test_loss_of_several_labels_is_that_of_numpy():
    """The mean over classes of the binary cross-entropy; right is right in every class."""
    logits_BC = logits()
    labels_BC = (np.random.default_rng(1).random((6, 3)) > 0.5).astype(np.float32)
    labels_BC[0] = logits_BC[0] > 0
    found, metrics = task(multi_label=True).loss({"logits": jnp.asarray(logits_BC)}, {"label": labels_BC})
    chance = 1 / (1 + np.exp(-logits_BC.astype(np.float64)))
    expected = -(labels_BC * np.log(chance) + (1 - labels_BC) * np.log1p(-chance)).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(metrics["accuracy"], ((chance > 0.5) == labels_BC).all(axis=1))
    assert metrics["accuracy"][0] == 1


def test_loss_is_computed_in_float32():
    """bfloat16 logits lose no more than their own rounding."""
    logits_BC, labels_B = jnp.asarray(logits(scale=1.0), jnp.bfloat16), np.zeros(6, np.int32)
    found, _ = task().loss({"logits": logits_BC}, {"label": labels_B})
    expected, _ = task().loss({"logits": logits_BC.astype(jnp.float32)}, {"label": labels_B})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("multi_label", [False, True])
def test_loss_of_far_logits_is_finite(multi_label):
    """1e4 is no overflow, nor is its gradient."""
    labels = np.array([[0.0, 1.0]], np.float32) if multi_label else np.array([1], np.int32)
    one = task(2, multi_label=multi_label)

    def loss(logits_BC):
        return one.training_loss({"logits": logits_BC}, {"label": labels})[0].sum()

    value, gradient = jax.value_and_grad(loss)(jnp.array([[1e4, -1e4]]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_allclose(value, 1e4 if multi_label else 2e4, rtol=1e-6)


# Rare and frequent classes: 5, 1 and 14 examples of one label; of several labels 16, 2 and 10 of 20.
_COUNTS = np.array([5, 1, 14])
_ONE = np.repeat(np.arange(3), _COUNTS)
_SEVERAL = (np.arange(20)[:, None] < np.array([16, 2, 10])).astype(np.float32)


def by_numpy(scores, targets, counts, *, loss, label_smoothing=0.0, class_weights="none", logit_adjustment=0.0):
    """The formulas of the papers for float64 scores and targets [..., K], with gamma 1.5, q 0.4 and beta 0.9."""
    scores = scores + logit_adjustment * np.log(counts / counts.sum(axis=-1, keepdims=True))
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p = shifted / shifted.sum(axis=-1, keepdims=True)
    values = {"cross_entropy": -np.log(p), "focal": -((1 - p) ** 1.5) * np.log(p), "gce": (1 - p**0.4) / 0.4}[loss]
    raw = {"none": 1.0 + 0 * counts, "inverse": 1 / counts, "effective": (1 - 0.9) / (1 - 0.9**counts)}[class_weights]
    weights = raw * counts.sum(axis=-1, keepdims=True) / (counts * raw).sum(axis=-1, keepdims=True)
    targets = (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]
    return (weights * targets * values).sum(axis=-1)


_REMEDIES = [
    {"loss": "focal"},
    {"loss": "gce"},
    {"loss": "cross_entropy", "label_smoothing": 0.2},
    {"loss": "cross_entropy", "class_weights": "inverse"},
    {"loss": "cross_entropy", "class_weights": "effective"},
    {"loss": "cross_entropy", "logit_adjustment": 1.5},
    {"loss": "focal", "label_smoothing": 0.1, "class_weights": "effective", "logit_adjustment": 0.5},
    {"loss": "gce", "label_smoothing": 0.1, "class_weights": "inverse"},
]


def remedied(options, labels, **more) -> Task:
    """A task with these options that has seen the labels."""
    numbers = {"gamma": 1.5} if options["loss"] == "focal" else {"q": 0.4} if options["loss"] == "gce" else {}
    numbers |= {"beta": 0.9} if options.get("class_weights") == "effective" else {}
    one = task(**options, **numbers, **more)
    one.prepare(labels)
    return one


@pytest.mark.parametrize("options", _REMEDIES, ids=lambda options: ",".join(map(str, options.values())))
def test_training_loss_is_that_of_numpy(options):
    """Every remedy and some together, of hard labels and of shares, for one label an example."""
    one, logits_BC = remedied(options, _ONE), logits(scale=2.0)
    hard_B = np.array([0, 1, 2, 0, 1, 2], np.int32)
    shares_BC = np.random.default_rng(1).dirichlet(np.ones(3), 6).astype(np.float32)
    for labels, targets in ((hard_B, np.eye(3)[hard_B]), (shares_BC, shares_BC.astype(np.float64))):
        found, metrics = one.training_loss({"logits": jnp.asarray(logits_BC)}, {"label": labels})
        expected = by_numpy(logits_BC.astype(np.float64), targets, _COUNTS, **options)
        assert found.dtype == jnp.float32 and found.shape == (6,)
        # Float32 with numbers of order 10.
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(metrics["accuracy"], logits_BC.argmax(axis=1) == targets.argmax(axis=1))


@pytest.mark.parametrize("options", _REMEDIES, ids=lambda options: ",".join(map(str, options.values())))
def test_training_loss_of_several_labels_is_that_of_numpy(options):
    """Each class is a choice between no and yes, with scores 0 and its logit, and counts of its own."""
    one, logits_BC = remedied(options, _SEVERAL, multi_label=True), logits(scale=2.0)
    labels_BC = (np.random.default_rng(1).random((6, 3)) > 0.5).astype(np.float32)
    found, _ = one.training_loss({"logits": jnp.asarray(logits_BC)}, {"label": labels_BC})
    scores = np.stack([np.zeros((6, 3)), logits_BC.astype(np.float64)], axis=-1)
    counts = np.stack([20 - _SEVERAL.sum(axis=0), _SEVERAL.sum(axis=0)], axis=-1)
    answers = np.stack([1 - labels_BC, labels_BC], axis=-1).astype(np.float64)
    np.testing.assert_allclose(found, by_numpy(scores, answers, counts, **options).mean(axis=1), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("shares", [False, True])
def test_smoothed_and_weighed_cross_entropy_is_that_of_torch(shares):
    """`CrossEntropyLoss(weight, label_smoothing)` of indices and of shares, before its mean."""
    import torch

    one, logits_BC = task(label_smoothing=0.2, class_weights="inverse"), logits()
    one.prepare(_ONE)
    labels = np.random.default_rng(1).dirichlet(np.ones(3), 6).astype(np.float32) if shares else np.arange(6) % 3
    weight = torch.tensor(20 / (3 * _COUNTS), dtype=torch.float32)
    theirs = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2, reduction="none")
    found, _ = one.training_loss({"logits": jnp.asarray(logits_BC)}, {"label": jnp.asarray(labels)})
    expected = theirs(torch.from_numpy(logits_BC), torch.from_numpy(labels))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=2e-6)


def test_evaluation_reports_the_plain_loss():
    """Under all remedies at once, and without having seen a label: a run is opened without its data."""
    options = {"loss": "focal", "label_smoothing": 0.1, "class_weights": "inverse", "logit_adjustment": 1.0}
    outputs, batch = {"logits": jnp.asarray(logits())}, {"label": np.arange(6) % 3}
    np.testing.assert_array_equal(task(**options).loss(outputs, batch)[0], task().loss(outputs, batch)[0])


@pytest.mark.parametrize("multi_label", [False, True])
def test_without_remedies_training_minimises_what_evaluation_reports(multi_label):
    """The same program to the letter, so that runs from before there were remedies repeat their bits."""
    one = task(multi_label=multi_label)
    one.prepare(_SEVERAL if multi_label else _ONE)
    labels = jnp.zeros((6, 3)) if multi_label else jnp.zeros(6, jnp.int32)
    programs = [
        str(jax.make_jaxpr(lambda x, loss=loss: loss({"logits": x}, {"label": labels}))(jnp.ones((6, 3))))
        for loss in (one.training_loss, one.loss)
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize(
    "options,labels,message",
    [
        ({"class_weights": "inverse"}, [0, 0, 2], "class_weights: needs .* of every class, .* lacking for b"),
        ({"logit_adjustment": 1.0}, [0, 0], "logit_adjustment: .* lacking for b, c"),
        (
            {"class_weights": "effective", "multi_label": True},
            [[1, 0, 1], [1, 0, 0]],
            "class_weights: .* with and without every class, .* lacking for a, b",
        ),
    ],
)
def test_a_class_that_is_never_seen_cannot_be_weighed(options, labels, message):
    """Its weight would be infinite, its logarithm too."""
    with pytest.raises(UserError, match=f"task.options.{message}"):
        task(**options).prepare(np.array(labels))


def test_pooling():
    """The first token, the checkpoint's own feature, and the mean over tokens that count; none at all gives zeros."""
    hidden_BTD = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    mask_BT = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    outputs = {"last_hidden_state": jnp.asarray(hidden_BTD), "pooler_output": jnp.ones((3, 2))}
    np.testing.assert_array_equal(pooled(outputs, "cls", mask_BT), hidden_BTD[:, 0])
    np.testing.assert_array_equal(pooled(outputs, "pooler", mask_BT), np.ones((3, 2)))
    np.testing.assert_array_equal(pooled(outputs, "last", mask_BT)[:2], hidden_BTD[[0, 1], [3, 1]])
    np.testing.assert_array_equal(pooled(outputs, "last", None), hidden_BTD[:, -1])
    expected = [hidden_BTD[0].mean(axis=0), hidden_BTD[1, :2].mean(axis=0), np.zeros(2)]
    # Sums of four float32 numbers.
    np.testing.assert_allclose(pooled(outputs, "mean", mask_BT), expected, atol=1e-6)
    np.testing.assert_allclose(pooled(outputs, "mean", None), hidden_BTD.mean(axis=1), atol=1e-6)


def test_mean_over_an_image_takes_both_axes():
    """float[B, H, W, D]."""
    hidden_BHWD = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    found = pooled({"last_hidden_state": jnp.asarray(hidden_BHWD)}, "mean", None)
    np.testing.assert_allclose(found, hidden_BHWD.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("rate", [0.5, 0.999])
def test_head_drops_its_feature_only_in_training(rate):
    """Logits = feature @ kernel + bias without the mode; with it some are another; a rate near 1 is no division by
    zero."""
    head = task(dropout=rate).stages(8, rngs=nnx.Rngs(0))["head"]
    feature = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    outputs = {"feature": jnp.asarray(feature)}
    plain = head(outputs, Context({}, {}, EVAL, None))
    np.testing.assert_allclose(plain["logits"], feature @ head.kernel[...] + head.bias[...], atol=1e-6)
    assert plain["feature"] is outputs["feature"] and plain["logits"].dtype == jnp.float32
    drawn = head(outputs, Context({}, {}, Mode(dropout=True), jax.random.key(0)))["logits"]
    assert np.isfinite(drawn).all() and (drawn != plain["logits"]).any()


def test_feature_takes_an_array_as_the_hidden_state():
    """A backbone without a pooling layer leaves no dict."""
    context = Context({"attention_mask": jnp.ones((2, 3))}, {}, EVAL, None)
    stages = task(pool="mean", bias=False).stages(2, rngs=nnx.Rngs(0))
    outputs = stages["head"](stages["feature"](jnp.ones((2, 3, 2)), context), context)
    assert set(outputs) == {"last_hidden_state", "feature", "logits"} and outputs["logits"].shape == (2, 3)
    assert stages["head"].bias is None


@pytest.mark.parametrize(
    "options,labels,message",
    [
        ({}, None, "has no labels"),
        ({}, [0, 1, 3, -1], "label 3 of k2 is outside 0 to 2, as are 1 more"),
        ({}, [0, np.nan, 1, 2], "label nan of k1 is outside 0 to 2"),
        ({}, [0, 0.5, 1, 2], "label 0.5 of k1"),
        ({}, [[0, 1, 0]], "several labels an example.*multi_label=True"),
        ({"multi_label": True}, [0, 1], "one label an example.*multi_label=False"),
        ({"multi_label": True}, [[0, 1, 0], [0, 2, 0]], r"label \[0 2 0\] of k1 is outside 0 to 1"),
        ({"multi_label": True}, [[0, np.nan, 0]], "of k0 is outside 0 to 1"),
        ({"multi_label": True}, [[0, 1]], "labels for 2 classes, there are 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(options, labels, message):
    """With the record; without the check they would be a silent NaN, or the last class."""
    labels = None if labels is None else np.array(labels)
    with pytest.raises(UserError, match=f"data: .*{message}"):
        task(**options).check_labels(labels, ["k0", "k1", "k2", "k3"], "data")


@pytest.mark.parametrize("options,labels", [({}, [0, 2, 1]), ({"multi_label": True}, [[0, 1, 1], [0, 0, 0]])])
def test_labels_that_fit_pass(options, labels):
    """The whole range, and an example of no class."""
    task(**options).check_labels(np.array(labels), ["k0", "k1", "k2"], "data")


def test_one_class_is_none():
    """Unless the question is of several labels."""
    with pytest.raises(UserError, match="1 class, at least 2"):
        task(1).check_labels(np.array([0]), ["k0"], "data")
    task(1, multi_label=True).check_labels(np.array([[1]]), ["k0"], "data")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"pool": "men"}, "did you mean 'mean'"),
        ({"dropout": 1.0}, "must be in"),
        ({"gamma": 1.0}, "gamma goes with loss=focal"),
        ({"loss": "gce", "gamma": 1.0}, "gamma goes with loss=focal"),
        ({"beta": 0.9, "class_weights": "inverse"}, "beta goes with class_weights=effective"),
        ({"loss": "focal", "gamma": -1.0, "label_smoothing": 1.0}, "gamma is -1.0, .*; label_smoothing is 1.0, must"),
        ({"loss": "gce", "q": 0.0}, r"q is 0.0, must be in \(0, 1\]"),
        ({"class_weights": "effective", "beta": 1.0}, r"beta is 1.0, must be in \(0, 1\)"),
        ({"logit_adjustment": -1.0}, "logit_adjustment is -1.0, must be at least 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    """A pooling that the family has not, a rate that leaves nothing, a number that would not be used."""
    with pytest.raises(UserError, match=f"task.options.*{message}"):
        task(**options)


def test_the_family_chooses_the_pooling_where_nobody_does():
    """Its first."""
    assert task().pool == "pooler" and task(pool="mean").pool == "mean"


def test_metrics_of_a_set_equal_scikit_learn():
    """Accuracy, macro-F1, and the macro area of one class against the rest; of two classes it is the usual area."""
    import sklearn.metrics as sklearn

    labels_N, ones = np.random.default_rng(2).integers(0, 3, 30), np.ones((1, 30))
    logits_NC = logits(30)
    wide = np.exp(logits_NC.astype(np.float64))
    chances_NC = wide / wide.sum(axis=1, keepdims=True)
    found = task().measure({"logits": logits_NC}, labels_N, ones)
    predicted = logits_NC.argmax(axis=1)
    np.testing.assert_allclose(found["accuracy"], sklearn.accuracy_score(labels_N, predicted))
    np.testing.assert_allclose(found["macro_f1"], sklearn.f1_score(labels_N, predicted, average="macro"))
    np.testing.assert_allclose(found["auroc"], sklearn.roc_auc_score(labels_N, chances_NC, multi_class="ovr"))

    two = task(2).measure({"logits": logits_NC[:, :2]}, labels_N % 2, ones)
    np.testing.assert_allclose(two["auroc"], sklearn.roc_auc_score(labels_N % 2, logits_NC[:, 1] - logits_NC[:, 0]))


def test_metrics_of_several_labels_equal_scikit_learn():
    """Exact matches, macro-F1 and macro area; a class that everyone has is left out of the area."""
    import sklearn.metrics as sklearn

    truth_NC = (np.random.default_rng(2).random((30, 3)) > 0.5).astype(np.float32)
    truth_NC[:, 2] = 1
    logits_NC = logits(30)
    found = task(multi_label=True).measure({"logits": logits_NC}, truth_NC, np.ones((1, 30)))
    np.testing.assert_allclose(found["accuracy"], sklearn.accuracy_score(truth_NC, logits_NC > 0))
    np.testing.assert_allclose(found["macro_f1"], sklearn.f1_score(truth_NC, logits_NC > 0, average="macro"))
    areas = [sklearn.roc_auc_score(truth_NC[:, c], logits_NC[:, c]) for c in range(2)]
    np.testing.assert_allclose(found["auroc"], np.mean(areas))


def test_area_is_left_out_where_there_is_one_class():
    """No number rather than a guess."""
    found = task().measure({"logits": logits(4)}, np.zeros(4, int), np.ones((1, 4)))
    assert "auroc" not in found and set(found) == {"accuracy", "macro_f1"}


def test_details_by_hand():
    """F1 and recall of each class, and rows of the confusion matrix are true classes; a class that no example has is
    recalled neither well nor badly."""
    logits_NC = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    found = task().details({"logits": logits_NC}, np.array([0, 1, 1, 1]))
    np.testing.assert_allclose([found["f1_by_class"][name] for name in "abc"], [2 / 3, 4 / 5, 0])
    assert found["recall_by_class"] == {"a": 1.0, "b": 2 / 3, "c": None}
    assert found["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    several = task(multi_label=True).details({"logits": logits_NC}, np.ones((4, 3)))
    assert several == {
        "f1_by_class": {"a": 2 / 3, "b": 2 / 3, "c": 0.0},
        "recall_by_class": {"a": 0.5, "b": 0.5, "c": 0.0},
    }


def test_predictions_of_one_label():
    """The likeliest class and chances that sum to one, for far logits too."""
    rows = task().predictions({"logits": np.array([[0.0, np.log(3), -1e4], [1e4, 0, 0]], np.float32)})
    assert [row["label"] for row in rows] == ["b", "a"]
    np.testing.assert_allclose([rows[0][f"p({name})"] for name in "abc"], [0.25, 0.75, 0.0], atol=1e-6)
    assert rows[1]["p(a)"] == 1.0 and list(rows[0]) == ["label", "p(a)", "p(b)", "p(c)"]


def test_predictions_of_several_labels():
    """Every class above one half, none at all, and no overflow."""
    rows = task(multi_label=True).predictions({"logits": np.array([[np.log(3), -1e4, 1e4], [-1, -1, -1]], np.float32)})
    assert [row["label"] for row in rows] == ["a|c", ""]
    np.testing.assert_allclose([rows[0][f"p({name})"] for name in "abc"], [0.75, 0.0, 1.0], atol=1e-6)


def test_published_names_both_ways():
    """What a `config.json` says."""
    found = task(2).published()
    assert found["id2label"] == {"0": "a", "1": "b"} and found["label2id"] == {"a": 0, "b": 1}
