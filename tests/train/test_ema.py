# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Moving averages: the recurrence in float64 with timm's decays, and runs that are evaluated and written by them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import makers
import numpy as np
import optax
import pytest
import references
import toys

from tl_jax import evaluation, runs
from tl_jax.config import Plan
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.train.callbacks import Callback
from tl_jax.train.step import Step, initial_state

pytestmark = pytest.mark.usefixtures("one_device")


def _steps(ema, count=6):
    """Trained parameters after every step, and the last state."""
    objective, params = toys.objective(toys.Net(), Plan(preset="linear_probe"))
    params, plan, tx = jax.tree.map(jnp.copy, params), objective.plan, optax.sgd(0.5)
    step = Step(objective, tx, ema=ema)
    state = initial_state(params, plan.trained, plan.moving, tx, jax.random.key(0), ema=bool(ema))
    seen = []
    for seed in range(count):
        state, _ = step(state, toys.vectors(seed=seed))
        seen.append(jax.device_get(state.trained))
    return seen, state


@pytest.mark.parametrize("decay", [0.9, 0.6])
def test_averages_are_those_of_timm(decay):
    """Its decays, by float64, over what each update left: 0.6 is reached on the way, 0.9 is not."""
    seen, state = _steps(decay)
    settings = types.SimpleNamespace(
        update_after_step=0, use_warmup=True, warmup_gamma=1.0, warmup_power=2 / 3, decay=decay, min_decay=0.0
    )
    expected = {path: np.zeros(leaf.shape) for path, leaf in seen[0].items()}
    for number, trained in enumerate(seen, 1):
        kept = references.timm_module("utils/model_ema.py").ModelEmaV3.get_decay(settings, number)
        expected = {
            path: kept * expected[path] + (1 - kept) * leaf.astype(np.float64) for path, leaf in trained.items()
        }
    for path, leaf in state.ema.items():
        # Six float32 roundings of numbers of order 1.
        np.testing.assert_allclose(leaf, expected[path], atol=1e-6, err_msg=path)
        assert np.abs(leaf - seen[-1][path]).max() > 1e-3


def test_averaging_changes_nothing_that_trains():
    """To the last bit; and without it none is kept."""
    (plain, bare), (averaged, _) = _steps(0.0), _steps(0.9)
    jax.tree.map(np.testing.assert_array_equal, plain, averaged)
    assert bare.ema == {} and "ema" not in bare.moving


class _Breaks(Callback):
    def on_log(self, step, metrics):
        if step == 4:
            raise RuntimeError("the lights went out")


def test_a_run_is_resumed_tested_and_written_by_its_averages(tmp_path):
    """An interrupted run ends with the bits of a loop that nothing stopped; its metrics and its model are of the
    averages, not of what trained last."""
    exp = makers.text_run(tmp_path, epochs=None, steps=6, ema=0.9, save_every=2, log_every=2)
    plan = {"plan__preset": "linear_probe", "plan__lr": ()}
    exp = makers.changed(exp, data__buckets=(), train__restore_best=False, train__cache="off", **plan)
    with pytest.raises(RuntimeError, match="lights"):
        runs.run(exp, tmp_path / "run", callbacks=[_Breaks()], quiet=True)
    summary = runs.run(exp, tmp_path / "run", quiet=True)
    engine = build(exp)
    state = engine.init()
    for batch in engine.train_batches(0, 6):
        state, _ = engine.train_step(state, batch)
    _, kept = runs.open_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, kept.moving, state.moving)
    loss = evaluation.measure(engine, state, engine.sets["test"]).metrics["loss"]
    averaged = dataclasses.replace(state, trained=state.ema, ema={})
    assert loss == evaluation.measure(engine, averaged, engine.sets["test"]).metrics["loss"]
    last = evaluation.measure(engine, dataclasses.replace(state, ema={}), engine.sets["test"]).metrics["loss"]
    assert summary["test"]["loss"] == pytest.approx(loss, rel=1e-6) != pytest.approx(last, rel=1e-4)
    params = runs.load_run(tmp_path / "run").params
    np.testing.assert_array_equal(params["head/kernel"], state.ema["head/kernel"])


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_that_keeps_nothing_is_refused(tmp_path, decay):
    """1 would never move."""
    with pytest.raises(UserError, match=r"train.ema is .*, must be in \[0, 1\)"):
        build(makers.text_run(tmp_path, ema=decay))
