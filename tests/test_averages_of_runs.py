# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Finished runs averaged and calibrated from the command line."""

import csv
import json
import shutil
import warnings

import makers
import numpy as np
import pytest

import tl_jax
from tl_jax import evaluation, runs

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of this module's data, checkpoints and runs."""
    return tmp_path_factory.mktemp("averaging")


@pytest.fixture(scope="module")
def exp(home):
    """Texts read by the published pooling, for enough steps to learn something, too few to get them all right."""
    short = makers.text_run(home, epochs=None, steps=48, eval_every=24)
    return makers.changed(short, task__options={"pool": "pooler"}, data__buckets=())


@pytest.fixture(scope="module")
def first(home, exp):
    """(workdir, summary) of a finished run."""
    return str(home / "first"), runs.run(exp, home / "first", quiet=True)


@pytest.fixture(scope="module")
def second(home, exp):
    """Another, of the same split, with another seed and rate."""
    other = makers.changed(exp, seed=1, optimizer__learning_rate=2e-2)
    return str(home / "second"), runs.run(other, home / "second", quiet=True)


def answer(*words):
    """The JSON that a verb ends with."""
    code, out, err = makers.cli_run(*words, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def refusal(*words):
    """The one line of a verb that was given something wrong."""
    code, out, err = makers.cli_run(*words)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
    return err


def copied(run, folder, name=None, change=None):
    """The run in another folder, perhaps with a field of one of its JSON files changed."""
    shutil.copytree(run, folder)
    if name is not None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
    return str(folder)


def test_a_soup_of_two_runs_is_judged_and_written(first, second, tmp_path):
    """Rows of both runs are those of their summaries, greedy is not worse than the best of them on validation, and what
    is written is the mean of what the best is made of, for tl_jax and for `transformers`."""
    found = answer("average", first[0], second[0], f"--to={tmp_path / 'soup'}")
    rows = {row["name"]: row for row in found["rows"]}
    for workdir, summary in (first, second):
        assert {name: rows[workdir]["test"][name] for name in summary["test"]} == summary["test"]
        assert rows[workdir]["intervals"]["validation"] == summary["intervals"]["validation"]
    greedy = found["rows"][-1]
    accuracies = [row["validation"]["accuracy"] for row in found["rows"]]
    assert greedy["name"].startswith("greedy soup of ") and greedy["validation"]["accuracy"] >= max(accuracies[:2])
    assert rows[found["best"]]["validation"]["accuracy"] == max(accuracies)

    members = {"uniform soup": [first[0], second[0]], greedy["name"]: greedy["made_of"]}
    params = [runs.load_run(name).params for name in members.get(found["best"], [found["best"]])]
    written = tl_jax.load_pretrained(tmp_path / "soup")
    for path, leaf in written.params.items():
        # Two roundings of float32 to values of up to 2.
        np.testing.assert_allclose(leaf, np.mean([tree[path] for tree in params], axis=0), rtol=0, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForSequenceClassification
    theirs, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "soup", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert tuple(theirs.config.id2label.values()) == written.classes
    assert found["table"] in (tmp_path / "soup" / "README.md").read_text()


def test_a_soup_of_one_run_and_itself_is_that_run(first, tmp_path):
    """All metrics of all rows are the same numbers."""
    found = answer("average", first[0], copied(first[0], tmp_path / "again"))
    alone, *others = [{key: row[key] for key in ("validation", "test", "temperature")} for row in found["rows"]]
    assert others == [alone] * 3 and found["rows"][-1]["name"] == "greedy soup of 2"


def test_the_way_from_pretrained_to_tuned(first, tmp_path):
    """Its last network is the run; its first the pretrained one with the run's head; the table has a row for each."""
    workdir, summary = first
    found = answer("average", workdir, f"--to={tmp_path / 'wise'}")
    rows = found["rows"]
    assert [row["name"] for row in rows] == [f"{i / 10:.1f}" for i in range(11)]
    assert {name: rows[-1]["test"][name] for name in summary["test"]} == summary["test"]

    engine, state = runs.open_run(workdir, with_data=True)
    start = engine.init()
    for path in ("head/kernel", "head/bias"):
        start.trained[path] = state.trained[path]
    expected = evaluation.measure(engine, start, engine.sets["test"]).metrics
    assert {name: rows[0]["test"][name] for name in expected} == expected
    assert rows[0]["test"] != rows[-1]["test"]

    line = next(line for line in found["table"].splitlines() if line.startswith(f"| {found['best']} "))
    assert line.count("|") == 8 and found["table"].splitlines()[0].split(" | ")[1].startswith("validation accuracy")
    assert len(tl_jax.load_pretrained(tmp_path / "wise").classes) == 3


def test_running_statistics_are_averaged_and_it_is_said(home):
    """A ResNet from published weights, one step further."""
    makers.resnet(home / "resnet")
    exp = makers.image_run(home, epochs=None, steps=1, accumulate=1)
    exp = makers.changed(exp, model__pretrained=str(home / "resnet"), model__family=None, model__config={})
    exp = makers.changed(exp, model__fresh=("head/.*",), data__augment=(), data__threads=0)
    runs.run(exp, home / "images", quiet=True)
    code, out, err = makers.cli_run("average", str(home / "images"))
    assert code == 0 and "Running statistics (" in out and "| 0.5 " in out, err


def test_a_calibrated_run_predicts_at_its_temperature(first, tmp_path):
    """Validation data are likelier than before; chances are those of before to the power of 1 / T, classes the same."""
    workdir = copied(first[0], tmp_path / "run")
    (tmp_path / "new.txt").write_text("a cat word1 word2\niron word3\nword4 word5 word6\n")

    def predictions(name):
        output = tmp_path / name
        told = answer("predict", f"--workdir={workdir}", f"--input={tmp_path / 'new.txt'}", f"--output={output}")
        rows = list(csv.DictReader(output.read_text().splitlines()))
        chances = np.array([[float(row[f"p({c})"]) for c in sorted(makers.CLASSES)] for row in rows])
        return told["temperature"], [row["label"] for row in rows], chances

    none, labels, chances = predictions("before.csv")
    found = answer("calibrate", f"--workdir={workdir}")
    assert found == json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert found["after"]["validation"]["loss"] < found["before"]["validation"]["loss"]
    # The temperature's loss is computed in float64, the run's in float32.
    assert found["before"]["test"]["loss"] == pytest.approx(first[1]["test"]["loss"], rel=1e-5)

    t, labels_at_t, chances_at_t = predictions("after.csv")
    powers = chances ** (1 / t)
    assert none is None and t == found["temperature"] and abs(t - 1) > 0.05 and labels == labels_at_t
    # Softmax in float32.
    np.testing.assert_allclose(chances_at_t, powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)


def unfinished(first, folder):
    """A run without a summary."""
    run = copied(first, folder)
    (folder / "summary.json").unlink()
    return run


def other_split(first, folder):
    """One whose training data stand in another order."""
    return copied(first, folder, "splits.json", lambda kept: kept["splits"]["train"].reverse())


def other_plan(first, folder):
    """One that trained something else."""
    return copied(first, folder, "config.json", lambda exp: exp["plan"].update(layer_decay=0.5))


def other_weights(first, folder):
    """One that began elsewhere."""
    return copied(first, folder, "receipt.json", lambda receipt: receipt.update(digest="0" * 64))


def adapters(first, folder):
    """One that trained low-rank factors."""
    return copied(first, folder, "config.json", lambda exp: exp["plan"].update(adapters=[["x", {"kind": "lora"}]]))


def lora(first, folder):
    """One that did so by the preset."""
    return copied(first, folder, "config.json", lambda exp: exp["plan"].update(preset="lora", rank=4))


def from_scratch(first, folder):
    """One that began nowhere."""
    return copied(first, folder, "receipt.json", lambda receipt: receipt.update(digest=""))


@pytest.mark.parametrize(
    "make, told",
    [
        (unfinished, "holds no finished run"),
        (other_split, "split its data otherwise"),
        (other_plan, "has another config (plan.layer_decay"),
        (other_weights, "began from other weights"),
        (from_scratch, "began from no weights"),
        (adapters, "trained adapters"),
        (lora, "trained adapters"),
        (lambda first, folder: first, "is given twice"),
    ],
)
def test_runs_that_do_not_average_are_refused(first, tmp_path, make, told):
    """One line names what is wrong, and nothing is written."""
    line = refusal("average", first[0], make(first[0], tmp_path / "other"), f"--to={tmp_path / 'to'}")
    assert told in line and not (tmp_path / "to").exists()


def test_what_the_verbs_need_is_told(first, home, exp, tmp_path):
    """Runs, an empty folder, a finished run, something between, a temperature."""
    assert "needs a run" in refusal("average")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "is not empty" in refusal("average", first[0], f"--to={tmp_path / 'full'}")
    assert "--workdir: is missing" in refusal("calibrate")
    assert "holds no finished run" in refusal("calibrate", f"--workdir={tmp_path / 'none'}")
    head = makers.changed(exp, plan__preset="linear_probe", train__steps=1, plan__lr=())
    runs.run(head, home / "head", quiet=True)
    assert "nothing that it trained was pretrained" in refusal("average", str(home / "head"))
    (home / "head" / "calibration.json").write_text('{"temperature": -1.0}')
    (tmp_path / "new.txt").write_text("cat\n")
    words = (f"--workdir={home / 'head'}", f"--input={tmp_path / 'new.txt'}", f"--output={tmp_path / 'out.csv'}")
    assert "temperature is -1.0, must be a positive number" in refusal("predict", *words)
    assert not (tmp_path / "out.csv").exists()
