# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""L2-SP: the paper's gradient by NumPy in float64, and runs that hold on to what they loaded."""

import dataclasses

import jax
import jax.numpy as jnp
import makers
import numpy as np
import optax
import pytest
import toys

from tl_jax import costs, runs
from tl_jax.config import Plan
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.train.anchor import Anchor
from tl_jax.train.callbacks import Callback
from tl_jax.train.step import Step, initial_state

_ALPHA, _BETA = 0.3, 0.7
# Hands the gradients out as its state, and moves nothing.
_SHOW = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def _stepped(anchor, accumulate, moved):
    """(trained, start, gradients, metrics) of a step from parameters that left their start by `moved`."""
    plan = Plan(train=("blocks/.*", "head/.*"), batchnorm=((".*", "eval"),))
    objective, params = toys.objective(toys.Net(), plan)
    params = jax.tree.map(jnp.copy, params)
    trained, moving = objective.plan.trained, objective.plan.moving
    if anchor is not None:
        anchor = Anchor(
            tuple(path for path in trained if not path.startswith("head")), ("head/kernel", "head/bias"), _ALPHA, _BETA
        )
    step = Step(objective, _SHOW, accumulate=accumulate, anchor=anchor)
    state = initial_state(params, trained, moving, _SHOW, jax.random.key(7), anchor=anchor)
    state = dataclasses.replace(state, trained={path: state.trained[path] + moved[path] for path in trained})
    before = jax.device_get(state.trained)
    batch = {**toys.vectors(), "weight": np.array([1, 0, 2, 1, 1, 0.5, 1, 0], np.float32)}
    state, metrics = step(state, batch)
    return before, jax.device_get(state.anchor), state.opt_state, jax.device_get(metrics)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_gradient_is_that_of_the_paper(accumulate):
    """The loss's own, and alpha (w - w0) for what was loaded and beta v for what was not, whatever the weights and
    portions; the penalty is reported beside the loss, which stays as it was."""
    _, params = toys.objective(toys.Net(), Plan(preset="full"))
    rng = np.random.default_rng(0)
    moved = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in params.items()}
    _, _, plain, bare = _stepped(None, accumulate, moved)
    trained, start, found, metrics = _stepped(True, accumulate, moved)
    assert set(start) == {path for path in trained if not path.startswith("head")} != set()
    penalty = 0.0
    for path, leaf in trained.items():
        away = leaf.astype(np.float64) - (np.asarray(params[path], np.float64) if path in start else 0.0)
        strength = _ALPHA if path in start else _BETA
        penalty += strength / 2 * (away**2).sum()
        # Sums of float32 numbers of order 1.
        np.testing.assert_allclose(found[path], plain[path] + strength * away, rtol=1e-5, atol=2e-6, err_msg=path)
    np.testing.assert_allclose(metrics["l2_sp"], penalty, rtol=1e-5)
    assert metrics["loss"] == bare["loss"] and "l2_sp" not in bare
    norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in found.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


class _Breaks(Callback):
    def on_log(self, step, metrics):
        if step == 4:
            raise RuntimeError("the lights went out")


def _exp(folder, **overrides):
    """One layer and the head train; the rest of the step is quick to compile."""
    exp = makers.text_run(folder, epochs=None, steps=6, l2_sp=1.0, l2_sp_fresh=0.1, save_every=2, log_every=2)
    plan = {"plan__preset": None, "plan__train": ("blocks/0/mlp/.*", "head/.*")}
    return makers.changed(exp, data__buckets=(), train__restore_best=False, **plan, **overrides)


def test_an_interrupted_run_goes_on_with_its_anchor(tmp_path):
    """To the bits of a loop that nothing stopped, though no checkpoint holds where it started."""
    exp = _exp(tmp_path)
    with pytest.raises(RuntimeError, match="lights"):
        runs.run(exp, tmp_path / "run", callbacks=[_Breaks()], quiet=True)
    runs.run(exp, tmp_path / "run", quiet=True)
    engine = build(exp)
    state = engine.init()
    for batch in engine.train_batches(0, 6):
        state, _ = engine.train_step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, runs.open_run(tmp_path / "run")[1].moving, state.moving)


def test_copies_lie_where_the_originals_lie_and_are_counted(tmp_path):
    """Of what was loaded and trains, shared out as it is; `plan` states the memory."""
    makers.text_run(tmp_path)
    wide = makers.bert(tmp_path / "wide", hidden_size=64, intermediate_size=256)
    exp = _exp(tmp_path, mesh__data=4, mesh__fsdp=2, model__pretrained=wide)
    state = build(exp).init()
    assert set(state.anchor) == {path for path in state.trained if not path.startswith("head")}
    assert all(leaf.sharding == state.trained[path].sharding for path, leaf in state.anchor.items())
    size = sum(leaf.addressable_shards[0].data.nbytes for leaf in state.anchor.values())
    assert size < sum(leaf.nbytes for leaf in state.anchor.values())
    assert costs.report(exp).figures.memory["anchor"] == size


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"plan__train": ("head/.*",), "plan__preset": None, "plan__lr": ()}, "nothing that trains was loaded"),
        ({"model__init": "random"}, "nothing that trains was loaded"),
        ({"train__l2_sp": -1.0}, "train.l2_sp is -1.0, must be at least 0"),
        ({"train__l2_sp": 0.0, "train__l2_sp_fresh": 0.1}, "train.l2_sp_fresh goes with train.l2_sp"),
    ],
)
def test_an_anchor_without_ground_is_refused(tmp_path, overrides, message):
    """A network from scratch, a fresh head alone, and strengths that mean nothing."""
    with pytest.raises(UserError, match=message):
        build(makers.changed(makers.text_run(tmp_path, l2_sp=0.1), **overrides))
