# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs in this process: what they write, when they are refused, and that their results come back."""

import json

import jax
import jax.numpy as jnp
import makers
import numpy as np
import pytest
from etils import epath

import tl_jax
from tl_jax import config, evaluation, runs
from tl_jax.core import folder as folders
from tl_jax.core.errors import UserError
from tl_jax.data.examples import Examples
from tl_jax.engine import build
from tl_jax.report import metrics

pytestmark = pytest.mark.usefixtures("one_device")


class Counter(tl_jax.train.callbacks.Callback):
    """How many lines of the log were written, and after which steps."""

    def __init__(self):
        self.steps = []

    def on_log(self, step, metrics):
        self.steps.append(step)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of this module's data, checkpoints and runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def exp(home):
    """One epoch of texts, split by author."""
    return makers.changed(makers.text_run(home, epochs=1), data__group="author")


@pytest.fixture(scope="module")
def finished(home, exp):
    """(workdir, summary) of a finished run."""
    return home / "finished", runs.run(exp, home / "finished", quiet=True)


def test_a_run_writes_everything_down(finished):
    """Every file is there, and says what the summary says."""
    workdir, summary = finished
    for name in ("config.json", "receipt.json", "plan.json", "splits.json", "metrics.jsonl", "summary.json"):
        assert (workdir / name).stat().st_size > 0, name
    assert list(workdir.glob("events.out.tfevents.*"))
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert (workdir / "checkpoints" / f"{summary['steps']}.json").exists()
    kept = json.loads((workdir / "splits.json").read_text())
    assert {name: len(keys) for name, keys in kept["splits"].items()} == summary["examples"]
    assert kept["classes"] == sorted(makers.CLASSES)
    trained = json.loads((workdir / "plan.json").read_text())["trained"]
    assert trained["head/kernel"]["rate"] == 2.0 and trained["stem/word/embedding"]["rate"] == 1.0
    assert json.loads((workdir / "receipt.json").read_text())["fresh"] == ["head/bias", "head/kernel"]


def test_the_log_has_every_line_and_every_evaluation(finished, exp):
    """Lines at multiples of `log_every` and at the end of the epoch, one evaluation there."""
    workdir, summary = finished
    lines = metrics.read(workdir)
    every = range(exp.train.log_every, summary["steps"] + 1, exp.train.log_every)
    assert [line["step"] for line in lines if line["kind"] == "train"] == sorted({*every, summary["steps"]})
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [summary["steps"]]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_a_finished_run_is_not_run_again(finished, exp):
    """Called again it returns its summary and takes no step."""
    counter = Counter()
    assert runs.run(exp, finished[0], callbacks=[counter], quiet=True) == finished[1]
    assert counter.steps == []


def test_another_config_is_refused_by_the_names_of_its_fields(finished, exp):
    """All fields that differ are named, with both values, and the run stays as it was."""
    other = makers.changed(exp, optimizer__learning_rate=0.5, seed=7)
    with pytest.raises(UserError, match=r"optimizer\.learning_rate: 0\.01, now 0\.5, seed: 0, now 7"):
        runs.run(other, finished[0], quiet=True)
    assert json.loads((finished[0] / "summary.json").read_text()) == finished[1]


def test_mesh_and_threads_may_change(finished, exp):
    """They change neither the batches nor the mathematics."""
    other = makers.changed(exp, mesh__fsdp=2, data__threads=3)
    assert runs.run(other, finished[0], quiet=True) == finished[1]


def test_a_workdir_that_is_a_file_is_refused(tmp_path, exp):
    """Before anything is read."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be used as workdir"):
        runs.run(exp, tmp_path / "file", quiet=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_of_another_running_process_is_refused(tmp_path, exp):
    """One run at a time; nothing is written beside it."""
    folder = folders.open_folder(tmp_path / "run")
    with folders.locked(folder), pytest.raises(UserError, match="another run is writing here"):
        runs.run(exp, tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path, exp):
    """A mistake found while building leaves nothing behind, and no half-written run to go on with."""
    with pytest.raises(UserError, match="nowhere"):
        runs.run(makers.changed(exp, data__path="nowhere"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_is_repeated_from_its_own_config(finished, tmp_path):
    """`config.json` alone gives the same bits again."""
    again = runs.run(config.load(finished[0] / "config.json"), tmp_path, quiet=True)
    for name in ("config_digest", "train", "validation", "test", "intervals", "groups", "details"):
        assert again[name] == finished[1][name], name
    _, first = runs.open_run(finished[0])
    _, second = runs.open_run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, first.moving, second.moving)


def test_metrics_come_with_intervals_and_by_group(finished):
    """Every test metric lies in its interval, and the groups make up the test split."""
    summary = finished[1]
    assert set(summary["intervals"]["test"]) == set(summary["test"]) >= {"accuracy", "macro_f1", "loss"}
    for name, (low, high) in summary["intervals"]["test"].items():
        assert low <= summary["test"][name] <= high, name
    assert all(group.startswith("author") for group in summary["groups"])
    right = sum(group["accuracy"] * group["examples"] for group in summary["groups"].values())
    assert sum(group["examples"] for group in summary["groups"].values()) == summary["examples"]["test"]
    assert right / summary["examples"]["test"] == pytest.approx(summary["test"]["accuracy"])


def test_a_run_comes_back_as_the_model_that_was_tested(finished):
    """`load_run` gives the engine's logits, and so do the published files that it saves."""
    engine, state = runs.open_run(finished[0], with_data=True)
    logits = evaluation.outputs(engine, state, engine.sets["test"])["logits"]
    assert np.mean(logits.argmax(1) == engine.sets["test"].labels) == finished[1]["test"]["accuracy"]
    records = [engine.transform(engine.sets["test"][i]) for i in range(len(logits))]
    batch = engine.transform.collate(records, 16)
    pretrained = tl_jax.load_run(finished[0])
    # Padded to another length, and on another number of devices, sums run in another order.
    np.testing.assert_allclose(pretrained(batch)["logits"], logits, rtol=1e-5, atol=1e-5)
    pretrained.save(finished[0].parent / "published")
    published = tl_jax.load_pretrained(finished[0].parent / "published")
    np.testing.assert_allclose(published(batch)["logits"], logits, rtol=1e-5, atol=1e-5)
    assert published.classes == engine.task.classes


def test_a_foreign_loop_gives_the_bits_of_the_run(finished, exp):
    """`train_step` over `train_batches` in a loop of one's own ends with the run's parameters."""
    engine = tl_jax.build(exp)
    state = engine.init()
    for batch in engine.train_batches(0, engine.steps):
        state, found = engine.train_step(state, batch)
    _, theirs = runs.open_run(finished[0])
    jax.tree.map(np.testing.assert_array_equal, state.moving, theirs.moving)
    assert found["loss"].shape == ()


def test_a_run_that_does_not_improve_stops_early(home):
    """At a rate too small to change a prediction, patience ends the run and the best checkpoint is tested."""
    exp = makers.changed(makers.image_run(home, epochs=9, patience=2), optimizer__learning_rate=1e-9, data__augment=())
    summary = runs.run(makers.changed(exp, plan__batchnorm=((".*", "eval"),)), home / "early", quiet=True)
    per_epoch = -(-summary["examples"]["train"] // exp.train.batch_size)
    assert (summary["stopped"], summary["steps"], summary["tested_step"]) == ("early", 3 * per_epoch, per_epoch)


def test_a_baseline_runs_after_and_a_pretraining_before(home):
    """The pretraining's network is where the run starts, and the baseline starts as told."""
    first = makers.image_run(home, epochs=1)
    exp = makers.changed(first, baseline={"optimizer.learning_rate": 1e-6}, model__family=None, model__fresh=())
    summary = runs.run(makers.dataclasses.replace(exp, pretrain=first), home / "both", quiet=True)
    before = json.loads((home / "both" / "pretrain" / "summary.json").read_text())
    baseline = json.loads((home / "both" / "baseline" / "summary.json").read_text())
    assert summary["baseline"] == baseline and baseline["name"].endswith("baseline")
    receipt = json.loads((home / "both" / "receipt.json").read_text())
    assert receipt["fresh"] == [] and "pretrain/model" in receipt["source"]
    # Nearly unchanged from its start, the baseline's network is that of the pretraining.
    assert baseline["train"]["loss"] == pytest.approx(before["train"]["loss"], rel=0.2)
    ours, theirs = (tl_jax.load_run(home / "both" / name).params for name in ("baseline", "pretrain"))
    np.testing.assert_allclose(ours["head/kernel"], theirs["head/kernel"], atol=1e-5)


def test_a_run_starts_from_the_folder_of_another(finished, exp, home):
    """`model.pretrained` takes a run's folder: what it learned, its head included, is where the next one starts."""
    other = makers.changed(exp, model__pretrained=str(finished[0]), model__fresh=())
    runs.run(other, home / "from_run", quiet=True)
    assert json.loads((home / "from_run" / "receipt.json").read_text())["fresh"] == []
    # The same batches, so the first line of both logs differs by the start alone.
    assert metrics.read(home / "from_run")[0]["loss"] < metrics.read(finished[0])[0]["loss"]
    assert "head/kernel" in tl_jax.load_run(home / "from_run").params


def test_a_network_from_random_weights_keeps_its_tokenizer(exp, tmp_path):
    """What `model.init=random` trained can be saved and be started from, and none of the file's values are in it."""
    engine = build(makers.changed(exp, model__init="random", model__fresh=()))
    engine.to_pretrained(engine.init()).save(tmp_path)
    again, file = tl_jax.load_pretrained(tmp_path), tl_jax.load_pretrained(exp.model.pretrained)
    assert again.classes == engine.task.classes
    assert (again.params["stem/word/embedding"] != file.params["stem/word/embedding"]).all()
    build(makers.changed(exp, model__pretrained=str(tmp_path), model__fresh=()))


def test_own_examples_take_the_place_of_the_configs_data(home):
    """`build(exp, data=...)` reads no file; labels, classes and batches are those handed in."""
    x, y = makers.pixels(16)
    keys = [str(i) for i in range(16)]
    data = {"train": Examples(lambda i: {"image": x[i]}, keys, kind="image", classes="abc", labels=y)}
    exp = makers.changed(makers.image_run(home), data__path="nowhere", data__augment=())
    engine = build(exp, data=data)
    batch = next(engine.train_batches(0, 1))
    np.testing.assert_array_equal(batch["label"], y[np.asarray(batch["id"])])
    state, found = engine.train_step(engine.init(), batch)
    assert np.isfinite(found["loss"]) and engine.task.classes == ("a", "b", "c")


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(home):
    """Near the float32 loss, not equal to it; parameters and slots stay float32."""
    exp = makers.changed(makers.image_run(home, epochs=1), model__dtype="bfloat16")
    engine, plain = build(exp), build(makers.changed(exp, model__dtype="float32"))
    batch = next(engine.train_batches(0, 1))
    state, found = engine.train_step(engine.init(), batch)
    _, expected = plain.train_step(plain.init(), batch)
    # Eight bits of mantissa: a few per cent after three layers.
    assert found["loss"] == pytest.approx(float(expected["loss"]), rel=0.05) and found["loss"] != expected["loss"]
    floats = [leaf for leaf in jax.tree.leaves(state.moving) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}


def test_a_workdir_may_be_an_epath(finished, exp):
    """Run files go through `etils.epath`."""
    assert runs.run(exp, epath.Path(finished[0]), quiet=True) == finished[1]
