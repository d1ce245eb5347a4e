# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Runs with a prompt on a small BERT: what moves, what is saved, that it goes on bit for bit, and what is exported."""

import json

import jax
import makers
import numpy as np
import pytest
import references
import resuming

import tl_jax
from tl_jax import caching, runs
from tl_jax.config import Phase, Plan
from tl_jax.core.errors import UserError
from tl_jax.engine import build

pytestmark = pytest.mark.usefixtures("one_device")

_ROWS = "stem/word/prompt/rows"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of this module's data, base and runs."""
    return tmp_path_factory.mktemp("prompt")


@pytest.fixture(scope="module")
def exp(home):
    """Four rows, with averages, over 12 steps of texts in two lengths."""
    exp = makers.text_run(home, epochs=2, log_every=1, save_every=4, ema=0.5)
    exp = makers.changed(exp, plan__preset=None, plan__lr=(), plan__prompt=4, optimizer__learning_rate=0.1)
    return makers.changed(exp, task__options={"pool": "pooler"})


@pytest.fixture(scope="module")
def finished(home, exp):
    """(workdir, summary) of a run that nothing stopped."""
    return home / "run", runs.run(exp, home / "run", quiet=True)


def test_only_prompt_and_head_move(finished, exp):
    """Every other parameter has the bits of the base; what trains is 4 rows of 16, and a head [16, 3] with its bias."""
    _, start = build(exp).init_with_receipt()
    params = tl_jax.load_run(finished[0]).params
    moved = {path for path, leaf in params.items() if not np.array_equal(leaf, start.params[path])}
    assert moved == {_ROWS, "head/kernel", "head/bias"}
    assert finished[1]["trained_parameters"] == 4 * 16 + 16 * 3 + 3


def test_a_checkpoint_holds_prompt_and_head_only(finished):
    """What trains, its average and its two moments; counters beside them."""
    manifest = json.loads((finished[0] / "checkpoints" / f"{finished[1]['steps']}.json").read_text())
    sizes = [int(np.prod(shape)) for _, shape in manifest["leaves"].values()]
    assert sum(size for size in sizes if size > 1) == 4 * finished[1]["trained_parameters"]


def test_a_killed_run_goes_on_bit_for_bit(finished, exp, tmp_path):
    """Broken off between saves and gone on with, it is the run that was left alone."""
    resuming.broken_off(exp, tmp_path, (6,))
    resuming.assert_same_run(tmp_path, finished[0])


def test_the_loss_falls(exp):
    """One batch is learnt by rows and head, before a network that never learnt anything."""
    engine = build(makers.changed(exp, task__options={"pool": "mean"}, plan__dropout="none"))
    state, losses = engine.init(), []
    batch = jax.device_get(next(engine.train_batches(0, 1)))
    for _ in range(12):
        state, found = engine.train_step(state, batch)
        losses.append(float(found["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_what_is_cached_has_the_prompt(exp):
    """Where a phase freezes the prompt, what crosses its cut is computed with it, once, and gives the same losses."""
    phases = (Phase(Plan("linear_probe"), epochs=3),)
    engine = build(makers.changed(exp, task__options={"pool": "mean"}, phases=phases))
    cache, state = caching.Cache(engine), engine.init()

    def losses():
        batch = next(engine.train_batches(0, 1))
        return batch, engine.eval_step(state, batch)["loss"]

    (whole, expected), _ = losses(), cache.fill(state)
    cached, found = losses()
    assert cache.why_not() is None and "crossing" in cached and "crossing" not in whole
    # The features are the same; the programs that make them are not.
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_computes_nearly_the_same(exp):
    """The rows stay float32 and are rounded where they are used."""
    engine, narrow = build(exp), build(makers.changed(exp, model__dtype="bfloat16"))
    state = engine.init()
    batch = next(engine.train_batches(0, 1))
    losses = [each.eval_step(state, batch)["loss"] for each in (engine, narrow)]
    assert state.params[_ROWS].dtype == np.float32 and not np.array_equal(*losses)
    # Seven bits of mantissa through one block.
    np.testing.assert_allclose(*losses, atol=0.05)


def test_texts_that_leave_no_room_are_refused(exp):
    """Before anything is written, though none of the first batches is that long."""
    with pytest.raises(UserError, match=r"data\.max_length: with a prompt of 4 has 33 tokens.*32 positions") as error:
        build(makers.changed(exp, data__max_length=29))
    assert "Lower it" in str(error.value)


def test_a_prompt_is_exported_as_peft_reads_it(finished, exp, tmp_path):
    """The base in `transformers` with the exported prompt and head gives the run's logits; as a whole it is refused."""
    code, out, err = makers.cli_run("export", f"--workdir={finished[0]}", f"--to={tmp_path / 'hf'}")
    assert code != 0 and "no kernel can take in a prompt" in err and not (tmp_path / "hf").exists()
    code, out, err = makers.cli_run("export", f"--workdir={finished[0]}", f"--to={tmp_path / 'a'}", "--format=peft")
    assert code == 0 and "PeftModel" in out, err
    ids = np.arange(1, 13).reshape(2, 6)
    expected = references.peft_logits(exp.model.pretrained, tmp_path / "a", ids)
    # Sums of a few dozen terms in float32 in another order.
    np.testing.assert_allclose(tl_jax.load_run(finished[0])({"input_ids": ids})["logits"], expected, atol=1e-4)
