# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Classification of images and texts: one label an example, or any number of them.

task = Task(Config(pool="mean"), classes=("cat", "dog"), pools=("cls", "mean"))
for name, module in task.stages(model.width, rngs=rngs).items():
    model.add_stage(name, module)
losses, metrics = task.loss(outputs, batch)

Remedies for classes that are rare or labels that are wrong change what training minimises (`training_loss`) and nothing
else: evaluation reports the plain cross-entropy under all of them, and predictions read the logits as they are.
"""

# B batch, T time, D width, C classes, K outcomes of one question, N examples, R resamples

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tl_jax.core import losses, task
from tl_jax.core import metrics as measures
from tl_jax.core.errors import UserError, did_you_mean, shorten
from tl_jax.nn.functions import dropout, keys


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
      multi_label: every class is a question of its own; labels are float[B, C] of 0 and 1.
      pool: which feature the head reads: `pooler` (the checkpoint's pooling layer), `cls` (first token), `last` (the
        last token that counts), `mean` (over the tokens that count) or `distilled` (class and distillation token, a
        head each); None for the family's own.
      dropout: of the feature, in training.
      bias: whether the head has one.
      loss: what training minimises: `cross_entropy`, `focal` (easy examples count less) or `gce` (wrong labels pull
        less); see `core.losses`.
      gamma: of `focal`; 2 where not given.
      q: of `gce`; 0.7 where not given.
      label_smoothing: share of each target that is spread evenly over all classes.
      class_weights: how much an example counts by the class that it has: `inverse` to the number of training examples
        of that class, or to their `effective` number.
      beta: of `effective`; 0.999 where not given.
      logit_adjustment: this multiple of the logarithm of each class's share of the training examples is added to its
        logit, in training only (Menon et al. 2021): predictions read the plain logits, which then favour no class for
        being frequent.

    With `multi_label` all of them take each class as a choice between two answers, whose logits are 0 and the class's;
    a loss is the mean over classes. Numbers of examples are those of the training split, however they are drawn.

    Where `pool` and `bias` are not given, they are those of the family's published head for this task.
    """

    multi_label: bool = False
    pool: str | None = None
    dropout: float = 0.0
    bias: bool = True
    loss: Literal["cross_entropy", "focal", "gce"] = "cross_entropy"
    gamma: float | None = None
    q: float | None = None
    label_smoothing: float = 0.0
    class_weights: Literal["none", "inverse", "effective"] = "none"
    beta: float | None = None
    logit_adjustment: float = 0.0


class Feature(nnx.Module):
    """A stage of its own, so that a frozen backbone's cut lies behind it: one feature an example crosses."""

    def __init__(self, pool: str):
        self.pool = pool

    def __call__(self, x, context):
        """Named outputs (or `last_hidden_state` alone) -> the same with `feature`, see `pooled`."""
        outputs = dict(x) if isinstance(x, Mapping) else {"last_hidden_state": x}
        return {**outputs, "feature": pooled(outputs, self.pool, context.batch.get("attention_mask"))}


class Head(nnx.Linear):
    """A linear layer over the pooled feature; starts from N(0, 0.02²) and zero biases."""

    def __init__(self, width: int, classes: int, dropout: float, bias: bool, *, rngs: nnx.Rngs):
        super().__init__(width, classes, use_bias=bias, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.dropout = dropout

    def __call__(self, x, context):
        """Named outputs with `feature` -> the same with `logits` float32[B, C]."""
        feature_BD = dropout(x["feature"], self.dropout, context.key)
        return {**x, "logits": super().__call__(feature_BD).astype(jnp.float32)}


class DistilledHead(nnx.Module):
    """A head for each of two features; the logits are the mean of theirs (Touvron et al. 2020)."""

    def __init__(self, *args, rngs: nnx.Rngs):
        self.cls, self.distillation = Head(*args, rngs=rngs), Head(*args, rngs=rngs)

    def __call__(self, x, context):
        """Named outputs with `feature` float[B, 2, D] -> the same with `cls_logits`, `distillation_logits`, and
        `logits`, their mean, each float32[B, C]."""
        first, second = (context._replace(key=key) for key in keys(context.key, 2))
        cls = self.cls({"feature": x["feature"][:, 0]}, first)["logits"]
        distillation = self.distillation({"feature": x["feature"][:, 1]}, second)["logits"]
        return {**x, "cls_logits": cls, "distillation_logits": distillation, "logits": (cls + distillation) / 2}


def pooled(outputs: Mapping[str, jax.Array], pool: str, mask_BT: jax.Array | None) -> jax.Array:
    """One feature an example, float[B, D]; two of them, float[B, 2, D], for `distilled`.

    Args:
      mask_BT: positions that count in a mean; all where None. An example without any gives zeros.
    """
    if pool == "pooler":
        return outputs["pooler_output"]
    hidden_BTD = outputs["last_hidden_state"]
    if pool == "cls":
        return hidden_BTD[:, 0]
    if pool == "distilled":
        return hidden_BTD[:, :2]
    if pool == "last":
        last = hidden_BTD.shape[1] - 1
        if mask_BT is None:
            return hidden_BTD[:, last]
        last_B = last - jnp.argmax(mask_BT[:, ::-1].astype(bool), axis=1)
        return jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    if mask_BT is None:
        return hidden_BTD.reshape(hidden_BTD.shape[0], -1, hidden_BTD.shape[-1]).mean(axis=1)
    mask_BT1 = mask_BT[..., None].astype(jnp.float32)
    total_BD = jnp.sum(hidden_BTD.astype(jnp.float32) * mask_BT1, axis=1)
    return (total_BD / jnp.maximum(mask_BT1.sum(axis=1), 1.0)).astype(hidden_BTD.dtype)


class Task(task.Task):
    """What the engine asks of a task.

    Args:
      config: the options.
      classes: names of the classes, in the order of the logits.
      pools: what the family can pool, its own choice first.

    Raises:
      UserError: a pooling that the family has not, a number out of range, one that goes with another option.
    """

    soft_labels = True
    metrics = ("accuracy", "macro_f1", "auroc", "loss")

    def __init__(self, config: Config, classes: tuple[str, ...], pools: tuple[str, ...]):
        if config.pool is not None and config.pool not in pools:
            raise UserError("task.options.pool", f"no {config.pool!r} in this family{did_you_mean(config.pool, pools)}")
        if not 0 <= config.dropout < 1:
            raise UserError("task.options.dropout", f"is {config.dropout}, must be in [0, 1)")
        _check_loss(config)
        self.pool = config.pool or pools[0]
        self.config, self.classes = dataclasses.replace(config, pool=self.pool), tuple(classes)
        self.metric = "macro_f1" if config.multi_label else "accuracy"
        self._weights: np.ndarray | None = None
        self._log_priors: np.ndarray | None = None

    def stages(self, width: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The stages to append to a backbone of this width, by name."""
        kind = DistilledHead if self.pool == "distilled" else Head
        head = kind(width, len(self.classes), self.config.dropout, self.config.bias, rngs=rngs)
        return {"feature": Feature(self.pool), "head": head}

    def published(self) -> dict[str, object]:
        """What a `config.json` says of this head."""
        kind = "multi_label_classification" if self.config.multi_label else "single_label_classification"
        names = dict(enumerate(self.classes))
        return {
            "id2label": {str(i): name for i, name in names.items()},
            "label2id": {name: i for i, name in names.items()},
            "problem_type": kind,
        }

    def check_labels(self, labels: np.ndarray | None, keys: list[str], where: str) -> None:
        """Raise UserError unless labels fit the task: there, of the right form, of two classes at least, in range."""
        if labels is None:
            raise UserError(where, "has no labels")
        if len(self.classes) < 2 and not self.config.multi_label:
            raise UserError(where, f"has {len(self.classes)} class, at least 2 are needed")
        if (labels.ndim == 2) != self.config.multi_label:
            have = "several labels an example" if labels.ndim == 2 else "one label an example"
            raise UserError(where, f"has {have}", f"set task.options.multi_label={labels.ndim == 2}")
        if labels.ndim == 2 and labels.shape[1] != len(self.classes):
            raise UserError(where, f"has labels for {labels.shape[1]} classes, there are {len(self.classes)}")
        # By membership: a NaN is neither below nor above anything.
        allowed = (0, 1) if self.config.multi_label else range(len(self.classes))
        bad = np.flatnonzero(~np.isin(labels, list(allowed)).reshape(len(labels), -1).all(axis=1))
        if len(bad):
            text = f"label {labels[bad[0]]} of {keys[bad[0]]} is outside {allowed[0]} to {allowed[-1]}"
            raise UserError(where, text + (f", as are {len(bad) - 1} more" if len(bad) > 1 else ""))

    def prepare(self, labels: np.ndarray) -> None:
        """Count the training labels, for class weights and logit adjustment.

        Raises:
          UserError: one of them is asked for, and a class has no example (or, of several labels, no example without).
        """
        config = self.config
        wants = [name for name in ("class_weights", "logit_adjustment") if getattr(config, name) not in ("none", 0)]
        if not wants:
            return
        if config.multi_label:
            counts = np.stack([(labels < 0.5).sum(axis=0), (labels > 0.5).sum(axis=0)], axis=-1)
        else:
            counts = np.bincount(labels, minlength=len(self.classes))
        lacking = [name for name, count in zip(self.classes, counts) if np.min(count) == 0]
        if lacking:
            of = "with and without" if config.multi_label else "of"
            what = f"needs training examples {of} every class, which are lacking for {shorten(lacking)}"
            raise UserError(f"task.options.{wants[0]}", what, "leave it out, or give the data such examples")
        if config.class_weights != "none":
            beta = _given(config.beta, 0.999) if config.class_weights == "effective" else None
            self._weights = losses.outcome_weights(counts, beta)
        self._log_priors = losses.log_priors(counts)

    def loss(self, outputs, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of each example, computed in float32, and whether it was right.

        Args:
          batch: `label` int32[B] in [0, C), or the share of each class, float32[B, C]; for `multi_label` float32[B, C]
            of 0 and 1, whose loss is the mean over classes.

        Returns:
          float32[B]; {"accuracy": float32[B]}, where the right class is the one of the largest share.
        """
        logits_BC, labels = outputs["logits"].astype(jnp.float32), batch["label"]
        if self.config.multi_label:
            losses_B = optax.sigmoid_binary_cross_entropy(logits_BC, labels).mean(axis=-1)
            right_B = jnp.all((logits_BC > 0) == (labels > 0.5), axis=-1)
        elif labels.ndim == 1:
            losses_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, labels)
            right_B = logits_BC.argmax(axis=-1) == labels
        else:
            losses_B = optax.softmax_cross_entropy(logits_BC, labels)
            right_B = logits_BC.argmax(axis=-1) == labels.argmax(axis=-1)
        return losses_B, {"accuracy": right_B.astype(jnp.float32)}

    def training_loss(self, outputs, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the options make of `loss`, with the same arguments and results; without options it is `loss`."""
        config, (losses_B, metrics) = self.config, self.loss(outputs, batch)
        if not _changes_loss(config):
            return losses_B, metrics
        logits, targets = outputs["logits"].astype(jnp.float32), batch["label"]
        if config.multi_label:
            logits = jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
            targets = jnp.stack([1 - targets, targets], axis=-1)
        elif targets.ndim == 1:
            targets = jax.nn.one_hot(targets, len(self.classes))
        # [B, K] from here on, or [B, C, 2] for several labels.
        if config.logit_adjustment:
            logits = logits + config.logit_adjustment * self._log_priors
        log_p = jax.nn.log_softmax(logits)
        found = losses.cross_entropy(log_p)
        if config.loss == "focal":
            found = losses.focal(log_p, _given(config.gamma, 2.0))
        if config.loss == "gce":
            found = losses.generalized(log_p, _given(config.q, 0.7))
        weighed = losses.expected(found, losses.smoothed(targets, config.label_smoothing), self._weights)
        return weighed.mean(axis=-1) if config.multi_label else weighed, metrics

    def measure(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray, weights_RN: np.ndarray):
        """Metrics of a whole set, each [R]: accuracy, macro-F1, macro AUROC over classes with both kinds.

        Args:
          outputs: `logits` float32[N, C].
          weights_RN: how often each example counts; see `core.metrics`.
        """
        logits_NC = outputs["logits"]
        if self.config.multi_label:
            scores_NC, truth_NC = logits_NC, labels > 0.5
            predicted_NC = logits_NC > 0
            right = measures.accuracy(predicted_NC, truth_NC, weights_RN)
        else:
            scores_NC, truth_NC = _softmax(logits_NC), measures.one_hot(labels, len(self.classes))
            predicted_N = logits_NC.argmax(axis=1)
            predicted_NC = measures.one_hot(predicted_N, len(self.classes))
            right = measures.accuracy(predicted_N, labels, weights_RN)
        known = [c for c in range(len(self.classes)) if 0 < truth_NC[:, c].sum() < len(truth_NC)]
        areas = [measures.auroc(scores_NC[:, c], truth_NC[:, c], weights_RN) for c in known]
        found = {"accuracy": right, "macro_f1": measures.f1(predicted_NC, truth_NC, weights_RN).mean(axis=1)}
        if areas:
            # With two classes both one-against-rest areas are the same number.
            found["auroc"] = np.stack(areas).mean(axis=0)
        return found

    def details(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, object]:
        """What is no single number: F1 by class, recall by class (None where no example has it), and the confusion
        matrix (rows true, columns predicted)."""
        truth = labels > 0.5 if self.config.multi_label else measures.one_hot(labels, len(self.classes))
        logits_NC = outputs["logits"]
        chosen = logits_NC.argmax(axis=1)
        predicted = logits_NC > 0 if self.config.multi_label else measures.one_hot(chosen, len(self.classes))
        by_class = measures.f1(predicted, truth, np.ones((1, len(labels))))[0]
        have, hits = truth.sum(axis=0), (predicted & truth).sum(axis=0)
        recalls = [float(hit / count) if count else None for hit, count in zip(hits, have)]
        found: dict[str, object] = {
            "f1_by_class": dict(zip(self.classes, map(float, by_class))),
            "recall_by_class": dict(zip(self.classes, recalls)),
        }
        if not self.config.multi_label:
            found["confusion"] = measures.confusion(chosen, labels, len(self.classes)).tolist()
        return found

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
        """One row an example: the class names chosen, and the probability of every class."""
        logits_NC = outputs["logits"]
        chances_NC = _sigmoid(logits_NC) if self.config.multi_label else _softmax(logits_NC)
        rows = []
        for chances_C in chances_NC:
            if self.config.multi_label:
                label = "|".join(name for name, chance in zip(self.classes, chances_C) if chance > 0.5)
            else:
                label = self.classes[int(chances_C.argmax())]
            rows.append({"label": label, **{f"p({n})": float(p) for n, p in zip(self.classes, chances_C)}})
        return rows


def published_classes(published: Mapping[str, Any], folder: pathlib.Path | None) -> tuple[str, ...]:
    """The names of a head's classes in the order of its logits, as a `config.json` gives them."""
    if "id2label" not in published:
        # The CIFAR networks and timm say it so; without names there is a number of them.
        for name in ("classes_order", "label_names"):
            if isinstance(published.get(name), list):
                return tuple(map(str, published[name]))
    count = published.get("num_labels", published.get("num_classes", 2))
    labels = published.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count)}
    return tuple(str(labels[str(i)]) for i in range(len(labels)))


def _changes_loss(config: Config) -> bool:
    named = config.loss != "cross_entropy" or config.class_weights != "none"
    return named or config.label_smoothing > 0 or config.logit_adjustment != 0


def _check_loss(config: Config) -> None:
    """Raise one UserError for every number that is out of range or goes with an option that was not chosen."""
    wrong = []
    for name, value, option, chosen, fits, range_ in (
        ("gamma", config.gamma, "loss", "focal", lambda x: 0 <= x < np.inf, "at least 0"),
        ("q", config.q, "loss", "gce", lambda x: 0 < x <= 1, "in (0, 1]"),
        ("beta", config.beta, "class_weights", "effective", lambda x: 0 < x < 1, "in (0, 1)"),
    ):
        if value is not None and getattr(config, option) != chosen:
            wrong.append(f"{name} goes with {option}={chosen}, and only with it")
        elif value is not None and not fits(value):
            wrong.append(f"{name} is {value}, must be {range_}")
    if not 0 <= config.label_smoothing < 1:
        wrong.append(f"label_smoothing is {config.label_smoothing}, must be in [0, 1)")
    if not 0 <= config.logit_adjustment < np.inf:
        wrong.append(f"logit_adjustment is {config.logit_adjustment}, must be at least 0")
    if wrong:
        raise UserError("task.options", "; ".join(wrong))


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # Written so that no exponential overflows.
    return np.exp(-np.logaddexp(0, -x))


def _softmax(logits_NC: np.ndarray) -> np.ndarray:
    shifted = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
