# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes written out, and phases in full, on names alone."""

import pytest
import toys

from tl_jax import config
from tl_jax.config import Experiment, Model, Optimizer, Phase, Plan, Recipe, Train
from tl_jax.core import chain
from tl_jax.core.errors import UserError
from tl_jax.plan import phases
from tl_jax.plan.resolve import resolve

_CHAINS, _PARAMS = chain.split(toys.Net(blocks=3))
_STAGES = [stage.name for stages in _CHAINS.values() for stage in stages]
_STATS = {path for stages in _CHAINS.values() for stage in stages for path in stage.stats()}


def _experiment(recipe: Recipe | None = None, written=(), **plan) -> Experiment:
    return Experiment(
        model=Model(family="toys"),
        plan=Plan("full", **plan),
        optimizer=Optimizer(learning_rate=0.1),
        train=Train(epochs=2),
        phases=written,
        recipe=recipe or Recipe(),
    )


def _stretches(exp: Experiment, steps_per_epoch: int | None = 10):
    norms = sorted({path.rpartition("/")[0] for path in _STATS})
    written = phases.write(exp, _STAGES, [path for path in _PARAMS if path not in _STATS], norms)
    return phases.resolve(
        written, exp.optimizer, steps_per_epoch, lambda plan, decay: resolve(plan, _CHAINS, _PARAMS, decay)
    )


def test_phases_follow_one_another():
    """Lengths in epochs and in steps, each from where the one before ended; the last is the run's own."""
    exp = _experiment(written=(Phase(Plan("linear_probe"), epochs=1.5), Phase(Plan("last_n", n=1), steps=7)))
    found = _stretches(exp)
    assert [(each.start, each.stop) for each in found] == [(0, 15), (15, 22), (22, 42)]
    assert set(found[0].plan.trained) == {"head/kernel", "head/bias"}
    assert set(found[-1].plan.trained) == set(_PARAMS) - _STATS


def test_a_leaf_that_pauses_begins_again():
    """`since` is the phase from which a leaf has trained without a break."""
    back_and_forth = (Phase(Plan("linear_probe"), steps=1), Phase(Plan(train=("stem/.*",)), steps=1))
    found = _stretches(_experiment(written=back_and_forth))
    assert found[1].since["stem/linear/kernel"] == 1
    assert (found[2].since["stem/linear/kernel"], found[2].since["head/kernel"]) == (1, 2)


def test_lp_ft_trains_the_head_at_its_own_rate_first():
    """Kumar et al. 2022: two phases, each with a schedule over its own steps."""
    first, last = _stretches(_experiment(Recipe("lp_ft", epochs=3, lr=10)))
    assert (first.start, first.stop, last.stop) == (0, 30, 50)
    assert set(first.plan.trained) == {"head/kernel", "head/bias"}
    assert (first.optimizer.learning_rate, last.optimizer.learning_rate) == (1.0, 0.1)
    assert {first.optimizer.span, last.optimizer.span} == {"phase"}


def test_fine_tune_is_fastais():
    """Frozen but for head and BatchNorm (a tenth of the rate); then half the rate, a hundredth of it at the start."""
    first, last = _stretches(_experiment(Recipe("fine_tune")))
    norms = {path for path in _PARAMS if "/norm/" in path and path not in _STATS}
    assert set(first.plan.trained) == {"head/kernel", "head/bias"} | norms
    assert {first.plan.lr[path] for path in norms} == {0.1} and first.plan.lr["head/kernel"] == 1.0
    assert (first.optimizer.schedule, first.optimizer.warmup, first.optimizer.learning_rate) == ("one_cycle", 0.99, 0.1)
    opt = last.optimizer
    assert (opt.schedule, opt.warmup, opt.initial, opt.learning_rate) == ("one_cycle", 0.3, 0.2, 0.05)
    assert last.plan.lr["head/kernel"] == 1.0 and last.plan.lr["stem/linear/kernel"] == pytest.approx(0.01)


def test_ulmfit_adds_a_block_a_phase():
    """Howard and Ruder 2018: from the head down, everything in the end, 1/2.6 of the rate a stage."""
    found = _stretches(_experiment(Recipe("ulmfit")))
    trained = [{path.rpartition("/linear")[0] for path in each.plan.trained if "linear" in path} for each in found]
    blocks = ["blocks/2", "blocks/1", "blocks/0"]
    assert trained == [set(), {*blocks[:1]}, {*blocks[:2]}, {*blocks, "stem"}]
    last = found[-1].plan.lr
    assert last["blocks/1/linear/kernel"] / last["blocks/2/linear/kernel"] == pytest.approx(1 / 2.6)
    assert {(each.optimizer.initial, each.optimizer.warmup) for each in found} == {(1 / 32, 0.1)}


def test_frozen_start_has_one_schedule():
    """wav2vec2: the head alone for a while, under the schedule of the whole run."""
    first, last = _stretches(_experiment(Recipe("frozen_start", epochs=0.5)))
    assert (first.stop, last.stop) == (5, 25)
    assert first.optimizer.span == last.optimizer.span == "run"


def test_own_rates_stay():
    """A plan that says how rates fall is not overruled by a recipe."""
    assert _stretches(_experiment(Recipe("fine_tune"), layer_decay=0.5))[-1].plan.lr["stem/linear/kernel"] == 0.5**4


@pytest.mark.parametrize(
    "fields,text",
    [
        (dict(recipe=Recipe("lp_ft"), phases=(Phase(Plan("full"), epochs=1),)), "give phases or recipe.name"),
        (dict(phases=(Phase(Plan("full")),)), r"phases\[0\]: give exactly one of epochs and steps"),
        (dict(phases=(Phase(Plan("last_n"), epochs=1),)), r"phases\[0\].plan.n goes with"),
        (dict(phases=(Phase(Plan("lora"), epochs=1),)), "names adapters that are not those of the run's plan"),
        (dict(phases=(Phase(Plan("full"), epochs=1, optimizer={"name": "sgd"}),)), "name cannot differ"),
        (
            dict(phases=(Phase(Plan("full"), epochs=1, optimizer={"warmup": 2.0}),)),
            r"phases\[0\].optimizer.warmup is 2",
        ),
        (dict(phases=(Phase(Plan("full"), epochs=1, optimizer={"warmup": "x"}),)), r"phases\[0\].optimizer.warmup"),
        (dict(recipe=Recipe("lp_ft", epochs=0)), "recipe.epochs is 0"),
    ],
)
def test_what_cannot_work_is_refused(fields, text):
    """One line that names the field."""
    exp = Experiment(model=Model(family="vit"), plan=Plan("full"), train=Train(epochs=1), **fields)
    with pytest.raises(UserError, match=text):
        config.validate(exp)
