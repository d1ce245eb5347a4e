# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A language model trained on rows of several texts."""

import dataclasses

import makers
import numpy as np
import pytest
import resuming

from tl_jax import caching, evaluation, runs
from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Task, Train
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.resident import Resident

pytestmark = pytest.mark.usefixtures("one_device")

SIZES = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "eos_token_id": None, "bos_token_id": None}


@pytest.fixture
def exp(tmp_path):
    """Words in a fixed order, 2 to 12 of them; a GPT-2 with dropout; rows of 32 tokens."""
    model = makers.network(tmp_path / "gpt2", {"model_type": "gpt2", "vocab_size": 32, **SIZES})
    counts = np.random.default_rng(0).integers(2, 13, 64)
    lines = [" ".join(f"word{n % 8}" for n in range(at, at + count)) for at, count in enumerate(counts)]
    (tmp_path / "all.tsv").write_text("\n".join(["text", *lines]))
    return Experiment(
        name="packed",
        model=Model(model),
        task=Task("language_model"),
        data=Data(
            "table", path=str(tmp_path / "all.tsv"), options={"label": None}, max_length=32, packing=True, threads=0
        ),
        plan=Plan("full"),
        optimizer=Optimizer(learning_rate=2e-2),
        train=Train(batch_size=4, epochs=3, log_every=2, resident="off"),
    )


def test_a_run_learns_in_fewer_steps(exp, tmp_path, capsys):
    """It says what its rows hold; the test's perplexity, one text a row, comes near that of what cannot be
    known: where a text begins, and after how many words it ends."""
    summary = runs.run(makers.changed(exp, train__epochs=30, train__log_every=30), tmp_path / "run")
    packed, plain = build(exp), build(makers.changed(exp, data__packing=False))
    texts, rows = len(packed.sets["train"]), len(packed.packed)
    assert packed.steps_per_epoch == -(-rows // 4) < plain.steps_per_epoch / 2
    tokens = sum(len(packed.sets["train"][i]["input_ids"]) for i in range(texts))
    share = 1 - tokens / (packed.steps_per_epoch * 4 * 32)
    assert packed.padding.share == pytest.approx(share)
    assert f"padding: {share:.0%} of an epoch, at lengths 32; {texts} texts in {rows} rows" in capsys.readouterr().err
    assert summary["test"]["perplexity"] < 3
    assert summary["examples"]["train"] == texts


def test_evaluation_stays_one_text_a_row(exp):
    """The same batches with packing and without, at the same lengths."""
    ours, plain = build(exp), build(makers.changed(exp, data__packing=False))
    for split in ("train", "validation"):
        pairs = zip(ours.eval_batches(ours.sets[split]), plain.eval_batches(plain.sets[split]), strict=True)
        for one, other in pairs:
            assert one.keys() == other.keys() and "attention_mask" in one
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def test_a_run_broken_off_goes_on_as_the_unbroken_one(exp, tmp_path):
    """Bit for bit: which texts share a row is no matter of chance."""
    exp = makers.changed(exp, train__epochs=2, train__save_every=3)
    runs.run(exp, tmp_path / "unbroken", quiet=True)
    resuming.broken_off(exp, tmp_path / "broken", (4,))
    resuming.assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


def losses(exp, cached: bool = False, steps: int = 6) -> list[float]:
    """Of the first steps; where the cut is kept, of batches that bring what crosses it, and of validation."""
    engine = build(exp)
    state = engine.init()
    if cached:
        caching.Cache(engine).fill(state)
    found = []
    for batch in engine.train_batches(0, steps):
        assert ("crossing" in batch) == cached
        state, metrics = engine.train_step(state, batch)
        found.append(float(metrics["loss"]))
    return [*found, evaluation.measure(engine, state, engine.sets["validation"]).metrics["loss"]]


def test_what_crosses_the_cut_is_kept_of_rows(exp):
    """With who sees whom; texts of validation, one a row, beside them."""
    exp = makers.changed(exp, plan__preset="last_n", plan__n=1)
    # Float32 sums in another order: the prefix is computed in a program of its own.
    np.testing.assert_allclose(losses(exp, cached=True), losses(exp), rtol=1e-5)


def test_stacked_blocks_and_portions_train_alike(exp):
    """The blocks as one, and a batch of rows cut in two, whose rows all count the same."""
    exp = makers.changed(exp, plan__dropout="none")
    plain = losses(exp)
    # Float32 sums in another order.
    np.testing.assert_allclose(losses(makers.changed(exp, train__scan="on")), plain, rtol=1e-4)
    np.testing.assert_allclose(losses(makers.changed(exp, train__accumulate=2)), plain, rtol=1e-4)


def test_rows_stay_on_the_devices(exp):
    """They are of one length; the updates of one dispatch are those of single steps."""
    exp = makers.changed(exp, train__resident="on")
    engine = build(exp)
    resident = Resident(engine)
    assert resident.why_not() is None
    resident.load()
    ((_, updates),) = resident.updates(0, 2, lambda done: 2)
    _, found = resident.step(engine.init(), updates)
    # Float32 sums in another order.
    np.testing.assert_allclose(found["loss"][:2], losses(exp, steps=2)[:2], rtol=1e-5)


@pytest.mark.parametrize(
    "changes,reason",
    [
        (
            {"task__name": "classification"},
            "data.packing puts several texts in a row for task.name=language_model",
        ),
        ({"plan__prompt": 2}, "data.packing puts several texts in a row, and plan.prompt stands before one"),
        ({"data__sampler": "balanced"}, "data.sampler.*needs one class an example"),
    ],
)
def test_what_cannot_be_packed_is_refused(exp, changes, reason):
    """In one line each."""
    with pytest.raises(UserError, match=reason) as error:
        build(makers.changed(exp, **changes))
    assert "\n" not in str(error.value)


def test_a_network_with_an_encoder_is_refused(exp, tmp_path):
    """Its texts are not one row of words."""
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    folder = makers.network(tmp_path / "t5", {"model_type": "t5", **sizes})
    with pytest.raises(UserError, match="data.packing: puts several texts in a row, which the family t5 cannot tell"):
        build(dataclasses.replace(exp, model=Model(folder)))
