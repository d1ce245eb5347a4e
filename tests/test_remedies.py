# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Remedies for rare classes in whole runs: what is drawn, what is trained, and that nothing changes without them."""

import collections

import jax
import makers
import numpy as np
import pytest

from tl_jax import evaluation, runs
from tl_jax.core.errors import UserError
from tl_jax.engine import build, read_sets
from tl_jax.train.objective import ChainObjective
from tl_jax.train.step import Step

pytestmark = pytest.mark.usefixtures("one_device")


def rare(exp):
    """The experiment's splits, with 2 of 14 training texts of the last class."""
    sets = read_sets(exp.data)
    labels = sets["train"].labels
    last = np.flatnonzero(labels == 2)
    return {**sets, "train": sets["train"].take(np.setdiff1d(np.arange(len(labels)), last[2:]))}


def test_a_balanced_run_sees_every_class_equally_often(tmp_path):
    """In each epoch of as many steps as ever, padded by buckets."""
    exp = makers.changed(makers.text_run(tmp_path), data__sampler="balanced")
    engine = build(exp, data=rare(exp))
    assert len(engine.sets["train"]) == 30 and engine.steps_per_epoch == 4 and engine.steps == 8
    for start in (0, 4):
        batches = list(engine.train_batches(start, start + 4))
        seen = np.concatenate([batch["label"][batch["weight"] > 0] for batch in batches])
        assert collections.Counter(seen.tolist()) == {0: 10, 1: 10, 2: 10}
        assert {batch["input_ids"].shape[1] for batch in batches} <= {8, 16}


def test_a_balanced_sampler_needs_classes(tmp_path):
    """Several labels an example are no classes to draw by."""
    exp = makers.changed(makers.text_run(tmp_path), data__sampler="balanced", task__options={"multi_label": True})
    sets = {
        name: part.relabelled(np.eye(3, dtype=np.float32)[part.labels], part.classes)
        for name, part in read_sets(exp.data).items()
    }
    with pytest.raises(UserError, match="data.sampler: is balanced, which needs one class an example"):
        build(exp, data=sets)


def test_a_run_with_remedies_predicts_without_its_data(tmp_path):
    """Focal loss, weights and logit adjustment by the counts of the training split; the logits of a run that is opened
    without it are those that were tested, to the bit."""
    options = {"pool": "mean", "loss": "focal", "class_weights": "inverse", "logit_adjustment": 1.0}
    exp = makers.changed(makers.text_run(tmp_path, epochs=1), task__options=options, plan__preset="linear_probe")
    sets = rare(exp)
    runs.run(exp, tmp_path / "run", data=sets, quiet=True)
    without, state = runs.open_run(tmp_path / "run")
    found = [evaluation.outputs(engine, state, sets["test"]) for engine in (without, build(exp, data=sets))]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_without_remedies_no_bit_changes(tmp_path):
    """The engine's step is the plain step over the loss that evaluation reports: the same losses, the same arrays."""
    engine = build(makers.text_run(tmp_path))
    parts = engine.model, engine.chains, engine.plan
    plain = Step(
        ChainObjective(*parts, engine.task.loss),
        engine.tx,
        schedule=engine.schedule,
        place=engine.place,
        out_shardings=engine.shardings(),
    )
    ends = []
    for step in (engine.step, plain):
        state, losses = engine.init(), []
        for batch in engine.train_batches(0, 3):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        ends.append((losses, state.moving))
    jax.tree.map(np.testing.assert_array_equal, *ends)
