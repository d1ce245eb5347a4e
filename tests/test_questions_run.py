# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Questions on texts, from the config to answers in a file."""

import csv
import json

import makers
import numpy as np
import pytest

from tl_jax import apply, caching, runs
from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Task, Train
from tl_jax.engine import build

pytestmark = pytest.mark.usefixtures("one_device")

ANSWERS = ("cat", "apple", "iron")


def questions(file, count: int, long: bool) -> str:
    """Contexts of one telling word among others, beyond one window where `long`."""
    rng = np.random.default_rng(0)
    paragraphs = []
    for i in range(count):
        words = [f"word{n}" for n in rng.integers(0, 24, 20 if long else 5)]
        words.insert(int(rng.integers(0, len(words))), ANSWERS[i % 3])
        context = " ".join(words)
        answer = {"text": ANSWERS[i % 3], "answer_start": context.index(ANSWERS[i % 3])}
        paragraphs.append({"context": context, "qas": [{"id": f"q{i}", "question": "word0", "answers": [answer]}]})
    file.write_text(json.dumps({"data": [{"title": "Words", "paragraphs": paragraphs}]}))
    return str(file)


@pytest.fixture
def experiment(tmp_path):
    """A small BERT, told to find the word that is none of the others; contexts of two or three windows."""
    return Experiment(
        name="questions",
        model=Model(makers.bert(tmp_path / "bert"), fresh=("qa_outputs/.*",)),
        task=Task("extractive_qa", options={"stride": 4}),
        data=Data("squad", path=questions(tmp_path / "all.json", 45, long=True), max_length=16, threads=0),
        plan=Plan("full"),
        optimizer=Optimizer(learning_rate=1e-2),
        train=Train(batch_size=8, epochs=8),
    )


def test_answers_are_learnt_and_written_down(experiment, tmp_path):
    """The test's questions are answered, evaluation and prediction agree, and counts are of questions."""
    summary = runs.run(experiment, tmp_path / "run", quiet=True)
    assert summary["examples"] == {"train": 32, "validation": 4, "test": 9}
    assert summary["metric"] == "f1" and summary["test"]["exact_match"] == summary["test"]["f1"] == 1.0
    assert summary["intervals"]["test"]["f1"] == [1.0, 1.0]
    assert apply.evaluate_run(str(tmp_path / "run"))["metrics"]["loss"] == pytest.approx(summary["test"]["loss"])
    new = questions(tmp_path / "new.json", 7, long=False)
    assert apply.predict_file(str(tmp_path / "run"), new, str(tmp_path / "found.csv")) == 7
    with open(tmp_path / "found.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["answer"] for row in rows] == [ANSWERS[i % 3] for i in range(7)]
    assert [row["key"] for row in rows] == [f"q{i}" for i in range(7)]


def test_windows_keep_what_crosses_the_cut(experiment):
    """A probe's losses are the same with kept activations as without."""
    exp = makers.changed(experiment, plan__preset="linear_probe", train__epochs=2)
    engine = build(exp)
    losses = []
    for kept in (False, True):
        state = engine.init()
        if kept:
            caching.Cache(engine).fill(state)
        for batch in engine.train_batches(0, engine.steps):
            assert ("crossing" in batch) == kept
            state, metrics = engine.train_step(state, batch)
            losses.append(float(metrics["loss"]))
    half = len(losses) // 2
    # Float32 sums of another program.
    np.testing.assert_allclose(losses[half:], losses[:half], rtol=1e-5)
    assert losses[0] != losses[half - 1]
