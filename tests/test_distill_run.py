# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Runs with a teacher: how they go on, what they leave behind, and which teachers are refused."""

import dataclasses
import json
import pathlib
import shutil

import jax
import makers
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tl_jax
from tl_jax import caching, costs, runs
from tl_jax.config import Mesh, Phase, Plan
from tl_jax.core.errors import UserError
from tl_jax.distilling import open_teacher
from tl_jax.engine import build
from tl_jax.parallel import mesh as meshes
from tl_jax.train.callbacks import Callback

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The run that is the teacher of all others here, in the folder `teacher`, and what it publishes."""
    folder = tmp_path_factory.mktemp("distill")
    exp = makers.changed(makers.text_run(folder, epochs=None, steps=1), plan__preset="linear_probe", data__buckets=())
    runs.run(exp, folder / "teacher", quiet=True)
    tl_jax.load_run(folder / "teacher").save(folder / "published")
    makers.bert(folder / "small", hidden_size=8)
    return folder


def _exp(home, **overrides):
    """A student of the teacher's published files, of half its width."""
    exp = makers.text_run(home, epochs=None, steps=6, save_every=2, log_every=2)
    given = {"distill__teacher": str(home / "published"), "model__pretrained": str(home / "small")}
    return makers.changed(exp, data__buckets=(), **{**given, **overrides})


class _Breaks(Callback):
    def on_log(self, step, metrics):
        assert {"distill", "distill_features"} <= set(metrics)
        if step == 4:
            raise RuntimeError("the lights went out")


def test_an_interrupted_student_goes_on(home, tmp_path):
    """To the bits of a loop that nothing stopped, in portions, with L2-SP and averages, under a run's folder as the
    teacher. Nothing of the teacher is saved but its digest, and nothing of what compares features is published; another
    teacher in the same place is refused, and a finished run asks none."""
    shutil.copytree(home / "teacher", tmp_path / "teacher")
    exp = _exp(home, distill__teacher=str(tmp_path / "teacher"), distill__features=0.5, plan__train=("head/.*",))
    exp = makers.changed(exp, plan__preset=None, train__accumulate=2, train__ema=0.9, train__restore_best=False)
    with pytest.raises(RuntimeError, match="lights"):
        runs.run(exp, tmp_path / "run", callbacks=[_Breaks()], quiet=True)
    file = tmp_path / "teacher" / "model" / "model.safetensors"
    good, tensors = file.read_bytes(), load_file(file)
    save_file({**tensors, "classifier.bias": tensors["classifier.bias"] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"distill\.teacher: is not what taught this run"):
        runs.run(exp, tmp_path / "run", quiet=True)
    file.write_bytes(good)
    runs.run(exp, tmp_path / "run", quiet=True)

    engine = build(makers.changed(exp, distill__teacher=str(tmp_path / "teacher" / "model")))
    state, loaded = engine.init_with_receipt()
    assert set(state.trained) == {"head/kernel", "head/bias", "regressor/kernel", "regressor/bias"}
    for batch in engine.train_batches(0, 6):
        state, _ = engine.train_step(state, batch)
    opened = runs.open_run(tmp_path / "run")[1]
    jax.tree.map(np.testing.assert_array_equal, opened.moving, state.moving)
    assert state.teacher and not opened.teacher
    assert json.loads((tmp_path / "run" / "receipt.json").read_text())["teacher"] == loaded.receipt.teacher != ""
    tl_jax.load_run(tmp_path / "run").save(tmp_path / "out")
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "regressor" in name]
    assert tl_jax.load_pretrained(tmp_path / "out").classes == makers.CLASSES


def test_a_finished_student_needs_no_teacher(home, tmp_path):
    """Its folder opens when the teacher's is gone, unless a layer has the teacher's width."""
    shutil.copytree(home / "teacher", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for features in (0.0, 1.0):
        config["distill"] |= {"teacher": str(tmp_path / "gone"), "features": features}
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        if features:
            with pytest.raises(UserError, match="gone"):
                tl_jax.load_run(tmp_path / "run")
        else:
            assert tl_jax.load_run(tmp_path / "run").classes == makers.CLASSES


def test_a_teacher_is_shared_out_and_counted(home):
    """Over `fsdp`, as its own family says; `plan` states its memory; and eight devices take the step of one."""
    base = makers.bert(home / "wide", hidden_size=64, intermediate_size=256)
    wide = build(makers.changed(makers.text_run(home), model__pretrained=base))
    wide.to_pretrained(wide.init()).save(home / "wide teacher")
    exp = _exp(home, plan__preset="linear_probe", distill__teacher=str(home / "wide teacher"))
    losses, held = [], []
    for mesh in (Mesh(data=4, fsdp=2), Mesh()):
        engine = build(exp, meshes.build(mesh, jax.local_devices() if mesh.data == 4 else None))
        state, metrics = engine.train_step(engine.init(), next(iter(engine.train_batches(0, 1))))
        losses.append(float(metrics["distill"]))
        held.append(sum(leaf.addressable_shards[0].data.nbytes for leaf in state.teacher.values()))
    # Sums in another order.
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0] > 1e-5 and held[0] < held[1]
    assert costs.report(exp).figures.memory["teacher"] == held[1]


def test_features_cross_no_cut_with_a_teacher(home):
    """The teacher reads the inputs themselves, so they are not replaced by what crosses the cut."""
    engine = build(_exp(home, plan__preset="linear_probe", train__steps=20))
    assert caching.Cache(engine).why_not() == "distill.teacher reads the inputs in every step"
    bare = build(_exp(home, plan__preset="linear_probe", train__steps=20, distill__teacher=None))
    assert caching.Cache(bare).why_not() is None


def _renamed(folder: pathlib.Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = change(config["id2label"])
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))


def _other_words(folder: pathlib.Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"word3"', '"other3"'))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda folder: _renamed(folder, lambda names: {**names, "1": "fish"}), "calls class 1 'fish', .* it 'fruit'"),
        (_other_words, "has another vocabulary than the student"),
        (lambda folder: shutil.copytree(folder.parent / "bert", folder, dirs_exist_ok=True), "has no head for class"),
    ],
)
def test_teachers_of_another_school_are_refused(home, tmp_path, change, message):
    """Other names, other words, no head: in one line, before any weight is read."""
    shutil.copytree(home / "published", tmp_path / "teacher")
    shutil.copytree(home / "bert", tmp_path / "bert")
    change(tmp_path / "teacher")
    with pytest.raises(UserError, match=rf"distill\.teacher: .*{message}"):
        build(_exp(home, distill__teacher=str(tmp_path / "teacher")))


def test_names_that_nobody_gave_are_not_compared(home, tmp_path):
    """`LABEL_0` and on, which `transformers` makes up."""
    shutil.copytree(home / "published", tmp_path / "teacher")
    _renamed(tmp_path / "teacher", lambda names: {i: f"LABEL_{i}" for i in names})
    assert build(_exp(home, distill__teacher=str(tmp_path / "teacher"))).teacher is not None


def test_a_teacher_of_images_sees_them_as_the_student_does(home, tmp_path):
    """A text teacher is refused, and one whose pixels are scaled in another way, by the name of the field."""
    exp = makers.image_run(tmp_path, epochs=1)
    engine = build(exp)
    engine.to_pretrained(engine.init()).save(tmp_path / "published")
    exp = makers.changed(exp, distill__teacher=str(tmp_path / "published"))
    assert build(exp).teacher is not None
    processor = {"image_processor_type": "ViTImageProcessor", "size": 8, "image_mean": [0.5] * 3}
    (tmp_path / "published" / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match=r"reads images in another way: mean \(0\.5, 0\.5, 0\.5\), the student"):
        build(exp)
    shutil.copytree(home / "published", tmp_path / "texts")
    _renamed(tmp_path / "texts", lambda names: dict(zip(names, engine.task.classes)))
    with pytest.raises(UserError, match="reads texts, the student images"):
        build(makers.changed(exp, distill__teacher=str(tmp_path / "texts")))


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"distill__temperature": 0.0}, "distill.temperature is 0.0, must be above 0"),
        ({"distill__weight": 1.5}, "distill.weight is 1.5, a share in"),
        ({"distill__features": -1.0}, "distill.features is -1.0, must be at least 0"),
        ({"task__options": {"multi_label": True}}, "multi_label"),
    ],
)
def test_what_a_teacher_cannot_do_is_refused(home, overrides, message):
    """Numbers out of range, other kinds of labels."""
    with pytest.raises(UserError, match=message):
        build(_exp(home, **overrides))


def test_only_classes_are_taught(home):
    """Another task is refused by its name."""
    with pytest.raises(UserError, match="teaches classification, this run's task is extractive_qa"):
        open_teacher(_exp(home, task__name="extractive_qa"), None)


def test_the_teacher_stays_through_phases(home):
    """The second phase asks the same arrays as the first."""
    exp = _exp(home, plan__preset="linear_probe")
    exp = dataclasses.replace(exp, phases=(Phase(Plan("linear_probe"), steps=1),))
    engine = build(exp)
    state, _ = engine.train_step(engine.init(), next(iter(engine.train_batches(0, 1))))
    later = engine.phase(1).enter(state)
    assert later.teacher.keys() == state.teacher.keys() != set()
    assert all(later.teacher[path] is leaf for path, leaf in state.teacher.items())
    assert engine.phase(1).step.teacher is not None
