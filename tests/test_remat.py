# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`train.remat=auto` on devices of made sizes: what is chosen or refused, when nothing compiles, what a run keeps."""

import json
import math

import makers
import pytest
import resuming

from tl_jax import costs, fitting, remat, runs
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures("one_device")

_BATCH = 64


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """A BERT of three blocks that are held as one: in a row, a CPU's compiler undoes what is computed again."""
    home = tmp_path_factory.mktemp("remat")
    makers.bert(home / "bert", hidden_size=32, intermediate_size=128, num_hidden_layers=3)
    makers.texts(home / "texts.tsv")
    exp = makers.changed(makers.text_run(home, batch_size=_BATCH, log_every=1), data__buckets=(), train__scan="on")
    return makers.changed(exp, train__remat="auto", train__steps=4, train__eval_every=2)


@pytest.fixture(scope="module")
def engine(exp):
    """Before anything is chosen."""
    return build(exp)


@pytest.fixture(scope="module")
def peaks(engine):
    """Bytes of the step under each, as compiled."""
    return {each: costs.compiled_peak(remat.under(engine, each), _BATCH) for each in remat.ORDER}


@pytest.fixture(scope="module")
def known(peaks):
    """In place of `costs.peak`, which would compile again."""
    return lambda engine, enough: peaks[engine.exp.train.remat]


def never(*_):
    """In place of what must not be called."""
    raise AssertionError


def test_what_no_compiler_places_is_refused(engine):
    """Where none of the three can be compiled at all."""
    with pytest.raises(UserError, match="a step of 64 examples finds no room with block, a device has 1e-09 GB"):
        remat.settled(engine, lambda *_: math.inf, 1)


@pytest.mark.parametrize("name", remat.ORDER)
def test_the_first_that_fits_is_chosen(engine, peaks, known, name):
    """On a device of just its size, for the blocks and for nothing else; the line names what would not have fitted."""
    found, told = remat.settled(engine, known, int(peaks[name]))
    modes = {stage: mode.remat for stage, mode in found.plan.modes.items()}
    assert {mode for stage, mode in modes.items() if stage.startswith("blocks/")} == {name}
    assert {mode for stage, mode in modes.items() if not stage.startswith("blocks/")} == {"none"}
    assert found.exp.train.remat == name
    size = f"{peaks[name] / 1e9:.3g}"
    before = remat.ORDER[: remat.ORDER.index(name)]
    more = "".join(f"; {each} would take {peaks[each] / 1e9:.3g}" for each in before)
    assert told == f"remat: {name}, {size} of {size} GB{more}"


def test_what_never_fits_is_refused(engine, peaks, known):
    """In one line, with what it takes at least, what there is, and what to do."""
    limit = int(min(peaks.values())) - 1
    with pytest.raises(UserError) as error:
        remat.settled(engine, known, limit)
    text = str(error.value)
    assert "\n" not in text and "Lower train.batch_size" in text
    assert f"takes {peaks['block'] / 1e9:.3g} GB with block" in text and f"has {limit / 1e9:.3g}" in text


def test_nothing_is_asked_where_memory_is_unknown(engine):
    """As on a CPU: all is kept."""
    found, told = remat.settled(engine, never, None)
    assert found.plan.modes == remat.under(engine, "none").plan.modes
    assert told.startswith("remat: none, as devices")


def test_what_was_asked_for_is_left_alone(exp):
    """Only `auto` is chosen for."""
    engine = build(makers.changed(exp, train__remat="dots"))
    assert remat.settled(engine, never, 1) == (engine, "")


def test_nothing_is_compiled_where_all_surely_fits(engine, peaks, monkeypatch):
    """Where a device has twice what the step ever computes, the trace is enough; and that is no less than its peak."""
    bound = costs.at_most(remat.under(engine, "none"), _BATCH)
    assert bound >= peaks["none"]
    monkeypatch.setattr(costs, "compile_step", never)
    found, _ = remat.settled(engine, costs.peak, int(2 * bound))
    assert found.exp.train.remat == "none"


def test_the_choice_is_that_of_the_largest_phase(exp, peaks):
    """A phase that trains the head alone takes next to nothing; the engine stays at the phase that it was at."""
    phased = build(makers.changed(exp, recipe__name="lp_ft", train__steps=2))
    found, _ = remat.settled(phased, lambda e, _: e.number * peaks[e.exp.train.remat], int(peaks["dots"]))
    assert found.number == 0 and len(found.stretches) == 2
    assert found.stretches[1].plan.modes["blocks/2"].remat == found.exp.train.remat == "dots"


def test_a_run_goes_on_with_what_it_began_with(exp, peaks, tmp_path, monkeypatch, capsys):
    """Though the device has more memory now; it says so both times, and `config.json` still says `auto`."""
    monkeypatch.setattr(meshes, "memory_limit", lambda mesh: int(peaks["dots"]))
    with pytest.raises(resuming.PowerCut):
        runs.run(exp, tmp_path, callbacks=[resuming.Cutting(3)])
    assert "remat: dots, " in capsys.readouterr().err
    monkeypatch.setattr(meshes, "memory_limit", lambda mesh: 10**12)
    monkeypatch.setattr(remat, "settled", never)
    runs.run(exp, tmp_path)
    assert "remat: dots, as the run began" in capsys.readouterr().err
    kept = json.loads((tmp_path / "remat.json").read_text())
    assert kept["remat"] == "dots" and kept["why"].startswith("remat: dots, ") and "began" not in kept["why"]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["remat"] == "auto"


def test_a_plan_says_what_would_be_chosen(exp, peaks, monkeypatch):
    """With the peak of that step."""
    monkeypatch.setattr(meshes, "memory_limit", lambda mesh: int(peaks["block"]))
    monkeypatch.setattr(fitting, "largest", lambda *_: fitting.Largest(_BATCH, 2 * _BATCH, {}))
    monkeypatch.setattr(costs, "without_loops", lambda _: None)
    report = costs.report(exp)
    assert "remat: block, " in report.text
    assert sum(report.figures.memory.values()) == peaks["block"]
