# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run exports is what `transformers` computes with."""

import json
import warnings

import makers
import numpy as np
import pytest

from tl_jax import apply, runs
from tl_jax.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with the published pooling, from a bare backbone whose tensor names lack the prefix."""
    folder = tmp_path_factory.mktemp("export")
    exp = makers.changed(makers.text_run(folder, epochs=3), task__options={"pool": "pooler"})
    return folder / "run", runs.run(exp, folder / "run", quiet=True)


def test_transformers_gives_the_runs_own_test_accuracy(run, tmp_path):
    """Loaded by the class that the export names, nothing missing or unexpected, on the run's test split."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import AutoModelForSequenceClassification
    workdir, summary = run
    code, out, _ = makers.cli_run("export", f"--workdir={workdir}", f"--to={tmp_path / 'hf'}")
    assert code == 0 and "BertForSequenceClassification" in out
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    engine, _ = runs.open_run(workdir, with_data=True)
    test = engine.sets["test"]
    right = 0
    for i in range(len(test)):
        ids = torch.tensor(engine.transform(test[i])["input_ids"][None].astype(np.int64))
        with torch.no_grad():
            chosen = model.eval()(ids).logits.argmax().item()
        right += model.config.id2label[chosen] == test.classes[test.labels[i]]
    assert right / len(test) == pytest.approx(summary["test"]["accuracy"])


def test_the_card_holds_the_runs_facts(run, tmp_path):
    """Base, counts, classes, test metrics with their intervals."""
    workdir, summary = run
    apply.export(str(workdir), str(tmp_path / "hf"))
    card = (tmp_path / "hf" / "README.md").read_text()
    low, high = summary["intervals"]["test"]["accuracy"]
    assert f"| accuracy | {summary['test']['accuracy']:.4f} | {low:.4f} to {high:.4f} |" in card
    assert f"{summary['steps']} steps" in card and ", ".join(summary_classes(tmp_path / "hf")) in card


def summary_classes(folder) -> list[str]:
    """As the exported config names them."""
    return list(json.loads((folder / "config.json").read_text())["id2label"].values())


def test_a_head_that_transformers_has_not_is_refused(tmp_path):
    """A mean over tokens under BERT; nothing is written."""
    runs.run(makers.text_run(tmp_path, epochs=None, steps=1), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="pool=mean"):
        apply.export(str(tmp_path / "run"), str(tmp_path / "hf"))
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    "words,message",
    [
        (["--to=x"], "holds no finished run"),
        (["--to=x", "--format=onnx"], "--format"),
        ([], "--to"),
    ],
)
def test_wrong_words_are_told(tmp_path, words, message):
    """One line, exit 2."""
    code, _, err = makers.cli_run("export", f"--workdir={tmp_path}", *words)
    assert code == 2 and message in err and err.count("\n") == 1
