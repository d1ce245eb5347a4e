# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs of several phases: what moves when, what a resume and an export keep, and what compiles."""

import dataclasses
import logging

import jax
import makers
import numpy as np
import pytest
import resuming

import tl_jax
from tl_jax import engine as engines
from tl_jax import runs
from tl_jax.config import Phase, Plan, Recipe

pytestmark = pytest.mark.usefixtures("one_device")

# Three phases of 6 steps; what the first trains, the second freezes, and one leaf trains in the first alone.
_PLANS = (
    Phase(Plan(train=("head/.*", "stem/norm/.*")), epochs=1, optimizer={"learning_rate": 0.1}),
    Phase(Plan(train=("blocks/0/attn/.*",), layer_decay=0.5), epochs=1),
)
_LAST = Plan(train=("blocks/.*", "head/.*"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data, weights and workdirs of this module."""
    return tmp_path_factory.mktemp("phases")


@pytest.fixture(scope="module")
def exp(home):
    """Dropout, averages and anchors over three phases."""
    exp = makers.text_run(home, epochs=1, log_every=1, save_every=4, ema=0.9, l2_sp=0.1, restore_best=False)
    data = dataclasses.replace(exp.data, buckets=())
    return dataclasses.replace(exp, data=data, phases=_PLANS, plan=_LAST)


@pytest.fixture(scope="module")
def unbroken(home, exp):
    """The folder of a run that nothing stopped."""
    runs.run(exp, home / "unbroken", quiet=True)
    return home / "unbroken"


def moments(state) -> dict:
    """Adam's first moments by path."""
    leaves = jax.tree.leaves_with_path(state.opt_state)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {path: leaf for path in state.trained for key, leaf in named.items() if f".mu['{path}']" in key}


@pytest.fixture(scope="module")
def by_hand(exp):
    """Phase by phase as somebody else's loop would: its engine, the state it begins with, the state it ends with; and
    what was compiled meanwhile."""
    engine, state, phases, compiled = engines.build(exp), None, [], []
    handler = logging.Handler()
    handler.emit = lambda record: compiled.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    with jax.log_compiles():
        for number in range(len(engine.stretches)):
            engine = engine.phase(number)
            state = engine.init() if state is None else engine.enter(state)
            began = jax.tree.map(np.copy, (state.params, state.ema, moments(state)))
            for batch in engine.train_batches(engine.start, engine.stop):
                state, _ = engine.train_step(state, batch)
            for batch in engine.eval_batches(engine.sets["validation"]):
                engine.eval_step(state, batch)
            phases.append((engine, began, jax.tree.map(np.copy, (state.params, state.ema, moments(state)))))
    logging.getLogger("jax").removeHandler(handler)
    return phases, [text for text in compiled if text.startswith("Finished XLA compilation")]


def test_a_run_broken_off_in_every_phase_is_the_unbroken_run(home, exp, unbroken):
    """Bit for bit, averages and anchors too: cut off before the first save, right after a phase's first step and within
    the last phase."""
    resuming.broken_off(exp, home / "broken", steps=(3, 7, 15))
    resuming.assert_same_run(home / "broken", unbroken)


def test_each_phase_moves_what_its_plan_trains(by_hand):
    """And nothing else, to the bit; what an earlier phase moved stays where it was."""
    for engine, (began, *_), (ended, *_) in by_hand[0]:
        moved = {path for path in began if not np.array_equal(began[path], ended[path])}
        assert moved == set(engine.plan.trained)


def test_what_only_an_earlier_phase_trained_is_in_the_result(unbroken, exp):
    """The norm that the first phase moved and the others froze is in the adapted network, not the base's."""
    base = tl_jax.load_pretrained(exp.model.pretrained).params
    adapted = tl_jax.load_run(unbroken).params
    assert not np.array_equal(adapted["stem/norm/scale"], base["stem/norm/scale"])
    assert np.array_equal(adapted["stem/word/embedding"], base["stem/word/embedding"])


def test_averages_and_moments_go_on_where_training_goes_on(by_hand):
    """A kernel that trains in the second and the third phase keeps its average and Adam's moments; the head's, which
    paused, start anew: the average from where the head stands, the moments from zero."""
    (_, _, (_, before, slots_before)), (_, (params, average, slots), _) = by_hand[0][1:]
    kernel = "blocks/0/attn/out/kernel"
    np.testing.assert_array_equal(average[kernel], before[kernel])
    assert not np.array_equal(average[kernel], params[kernel])
    np.testing.assert_array_equal(average["head/kernel"], params["head/kernel"])
    np.testing.assert_array_equal(slots[kernel], slots_before[kernel])
    assert np.any(slots[kernel]) and not np.any(slots["head/kernel"])


def test_a_phase_compiles_its_step_and_nothing_else(by_hand):
    """One padded length: one step a phase, and one evaluation for all of them."""
    steps, evaluations = ([text for text in by_hand[1] if name in text] for name in ("jit(_core)", "jit(forward)"))
    assert (len(steps), len(evaluations)) == (3, 1)


def test_the_best_may_be_of_an_earlier_phase(home, exp):
    """A last phase that ruins the network: the test is that of a checkpoint from before, with the base's leaves."""
    ruin = dataclasses.replace(exp.optimizer, learning_rate=50.0)
    phases = (dataclasses.replace(_PLANS[0], optimizer={"learning_rate": 1e-2}),)
    train = dataclasses.replace(exp.train, restore_best=True, ema=0.0, l2_sp=0.0)
    exp = dataclasses.replace(exp, phases=phases, optimizer=ruin, train=train)
    summary = runs.run(exp, home / "ruined", quiet=True)
    assert summary["tested_step"] <= 6 < summary["steps"]
    base = tl_jax.load_pretrained(exp.model.pretrained).params
    adapted = tl_jax.load_run(home / "ruined").params
    assert np.array_equal(adapted["blocks/0/attn/out/kernel"], base["blocks/0/attn/out/kernel"])


def test_lp_ft_keeps_the_cut_in_its_first_phase(home, capsys):
    """What crosses the cut is computed once while the head trains alone, and in every step afterwards; the console says
    what each phase trains."""
    exp = dataclasses.replace(makers.text_run(home, epochs=1), recipe=Recipe("lp_ft", epochs=2))
    runs.run(exp, home / "lp_ft")
    told = capsys.readouterr().err
    assert "phase 1 of 2, steps 1 to 12: " in told and "phase 2 of 2, steps 13 to 18: " in told
    assert told.count("computing once what crosses the cut") == 1
    assert told.index("phase 1") < told.index("computing once") < told.index("phase 2")


def test_one_schedule_may_span_the_run(home):
    """`frozen_start`: the rate of every step is that of a run of one phase and the same length; else each phase rises
    and falls by itself."""
    one = engines.build(makers.text_run(home, epochs=3))
    for recipe, same in (("frozen_start", True), ("lp_ft", False)):
        exp = dataclasses.replace(makers.text_run(home, epochs=2), recipe=Recipe(recipe))
        parts = [engines.build(exp).phase(number) for number in (0, 1)]
        rates = [float(part.schedule(step)) for part in parts for step in range(part.start, part.stop)]
        assert len(rates) == one.steps == 18
        assert (rates == [float(one.schedule(step)) for step in range(18)]) == same
