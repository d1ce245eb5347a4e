# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""An adapted model on a whole set: metrics with intervals, by group, and predictions."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tl_jax.core import metrics as measures
from tl_jax.core.errors import UserError, shorten
from tl_jax.data.examples import Examples
from tl_jax.engine import Engine
from tl_jax.resident import Resident
from tl_jax.train import evaluate
from tl_jax.train.state import State


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      metrics: by name, `loss` among them.
      intervals: 95 % bootstrap intervals by metric; empty unless asked for.
      groups: metrics by group; empty where the data names none.
      details: what is no single number, such as the confusion matrix.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    groups: Mapping[str, Mapping[str, float]]
    details: Mapping[str, object]


def outputs(
    engine: Engine, state: State, examples: Examples, resident: Resident | None = None
) -> dict[str, np.ndarray]:
    """The model's outputs for every record, in order.

    Args:
      resident: the same examples, where they stay on the devices: one dispatch instead of one a batch.
    """
    if resident is None:
        found = evaluate.collect(engine.eval_step, state, engine.eval_batches(examples))
    else:
        found = resident.outputs(state)
    return engine.task.gathered(found, examples)


def measure(
    engine: Engine, state: State, examples: Examples, intervals: bool = False, resident: Resident | None = None
) -> Result:
    """Metrics of a set.

    Args:
      intervals: add bootstrap intervals, groups and details, as for a test set.
      resident: see `outputs`.
    """
    return judge(engine, outputs(engine, state, examples, resident), examples, intervals)


def judge(engine: Engine, found: Mapping[str, np.ndarray], examples: Examples, intervals: bool = False) -> Result:
    """What `measure` finds, from `outputs` that are there already."""
    examples = examples.records
    labels = examples.labels
    weights = measures.resamples(len(examples), seed=0, repeats=1000 if intervals else 0)
    values = {name: value for name, value in engine.task.measure(found, labels, weights).items()}
    values["loss"] = weights @ found["loss"].astype(np.float64) / len(examples)
    metrics = {name: float(value[0]) for name, value in values.items()}
    if not intervals:
        return Result(metrics, {}, {}, {})
    ranges = {name: measures.interval(value) for name, value in values.items()}
    return Result(metrics, ranges, _by_group(engine, found, examples), engine.task.details(found, labels))


def thinned(examples: Examples, limit: int) -> Examples:
    """At most `limit` records, evenly spaced."""
    count = len(examples.records)
    if count <= limit:
        return examples
    return examples.take_records(np.linspace(0, count - 1, limit).astype(np.int64))


def with_classes(examples: Examples, classes: tuple[str, ...], where: str) -> Examples:
    """The examples with labels in the order of `classes`, as a run knows them.

    Raises:
      UserError: the examples have a class that the run has not.
    """
    if examples.labels is None or examples.classes == classes:
        return examples
    unknown = [name for name in examples.classes if name not in classes]
    if unknown:
        raise UserError(where, f"has classes that the run does not know: {shorten(unknown)}", "see splits.json there")
    order = np.array([classes.index(name) for name in examples.classes])
    if examples.multi_label:
        labels = np.zeros((len(examples), len(classes)), np.float32)
        labels[:, order] = examples.labels
    else:
        labels = order[examples.labels]
    return examples.relabelled(labels, classes)


def _by_group(engine: Engine, found: Mapping[str, np.ndarray], examples: Examples) -> dict[str, dict[str, float]]:
    if examples.groups is None:
        return {}
    groups, labels = np.asarray(examples.groups), examples.labels
    table = {}
    for group in sorted(set(examples.groups)):
        here = groups == group
        part = {name: value[here] for name, value in found.items()}
        ones = np.ones((1, int(here.sum())))
        values = engine.task.measure(part, None if labels is None else labels[here], ones)
        table[group] = {"examples": int(here.sum()), **{name: float(value[0]) for name, value in values.items()}}
    return table
