# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Training sets that stay on the devices: the updates of single steps, many in one dispatch."""

import jax
import makers
import numpy as np
import pytest
import resuming

from tl_jax import caching, evaluation, runs
from tl_jax.core.errors import UserError
from tl_jax.data.images import ImageTransform
from tl_jax.data.preprocessor import ImageSpec
from tl_jax.engine import build
from tl_jax.report import metrics
from tl_jax.resident import Resident

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def images(tmp_path):
    """Two epochs of pictures as they are, with BatchNorm that follows them."""
    exp = makers.image_run(tmp_path, epochs=2, accumulate=1, log_every=4, resident="on")
    return makers.changed(exp, data__augment=())


@pytest.fixture
def changed(images):
    """The same pictures mirrored, shifted and mixed, classes drawn alike, in two portions, under averages."""
    exp = makers.changed(images, data__augment=("flip", "crop"), data__sampler="balanced")
    return makers.changed(exp, train__accumulate=2, train__mixup=0.8, train__cutmix=1.0, train__ema=0.9)


@pytest.fixture
def probe(tmp_path):
    """A head over features that are kept, of texts of two lengths."""
    exp = makers.text_run(tmp_path, epochs=3, log_every=5, resident="on")
    return makers.changed(exp, plan__preset="linear_probe", optimizer__learning_rate=0.1)


@pytest.mark.parametrize("name", ["images", "changed", "probe"])
def test_training_is_that_of_single_steps(name, request, tmp_path):
    """Every line of the log, to 1e-5: statistics, weights that fill up an epoch, means over a window."""
    exp = request.getfixturevalue(name)
    for resident in ("on", "off"):
        runs.run(makers.changed(exp, train__resident=resident), tmp_path / resident, quiet=True)
    ours, theirs = (metrics.read(tmp_path / resident) for resident in ("on", "off"))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one["batch_crc32"] == other["batch_crc32"] if one["kind"] == "train" else True
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5), one


@pytest.mark.parametrize("name", ["images", "changed"])
def test_batches_are_those_that_are_sent(name, request):
    """Bit for bit, from the middle of one epoch into the next: pixels, labels, weights and ids."""
    engine = build(request.getfixturevalue(name))
    resident = Resident(engine)
    resident.load()
    steps = engine.steps_per_epoch
    sent = engine.train_batches(steps - 2, steps + 2)
    _, updates = next(resident.updates(steps - 2, steps + 2, lambda done: done + 4))
    made = jax.jit(resident.data.batch)
    for number, expected in enumerate(sent):
        found = made(updates.rows[number], updates.weights[number], updates.drawn[number])
        assert found.keys() == expected.keys()
        for part, value in expected.items():
            assert found[part].dtype == value.dtype
            np.testing.assert_array_equal(found[part], value, err_msg=part)


def test_a_dispatch_ends_where_something_happens(images):
    """At lines of the log, evaluations and checkpoints, and at the end; the shapes are one."""
    engine = build(images)
    pauses = {0: 4, 4: 5, 5: 8, 8: 9}
    found = list(Resident(engine).updates(0, 9, pauses.__getitem__))
    assert [count for count, _ in found] == [4, 1, 3, 1]
    assert {updates.rows.shape for _, updates in found} == {(4, 16)}
    for (count, updates), start in zip(found, pauses):
        for number in range(count):
            np.testing.assert_array_equal(updates.rows[number], engine.train_plan.batch(start + number)[0])


def test_updates_that_are_not_asked_for_are_not_made(images):
    """The rows beyond the count are there for the shape."""
    engine = build(images)
    resident = Resident(engine)
    resident.load()
    ((count, updates),) = resident.updates(0, 3, lambda done: 3)
    state, found = resident.step(engine.init(), updates)
    assert count == 3 and int(state.step) == 3
    assert (np.asarray(found["loss"]) > 0).tolist() == [True, True, True, False]


@pytest.mark.parametrize("name,at", [("probe", 10), ("changed", 4)])
def test_a_run_broken_off_goes_on_as_the_unbroken_one(name, at, request, tmp_path):
    """Bit for bit, though the dispatches after the break begin elsewhere."""
    exp = makers.changed(request.getfixturevalue(name), train__save_every=3, train__restore_best=False)
    runs.run(exp, tmp_path / "unbroken", quiet=True)
    resuming.broken_off(exp, tmp_path / "broken", (at,))
    resuming.assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


def test_one_program_serves_every_dispatch(probe, caplog):
    """However many updates are made before the next line."""
    engine = build(probe)
    state = engine.init()
    caching.Cache(engine).fill(state)
    resident = Resident(engine)
    resident.load()
    for number, (_, updates) in enumerate(resident.updates(0, 9, lambda done: done + 1 + done % 3)):
        if number == 1:
            caplog.clear()
            context = jax.log_compiles()
            context.__enter__()
        state, _ = resident.step(state, updates)
    context.__exit__(None, None, None)
    assert not [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]


@pytest.mark.parametrize(
    "name,changes,reason",
    [
        ("images", {"data__augment": ("flip", "rand")}, "Pillow computes rand of data.augment"),
        ("images", {"profile": "2:3"}, "profile follows single steps"),
        ("probe", {"train__cache": "off"}, "batches are of several lengths"),
    ],
)
def test_what_speaks_against_it_is_said(name, changes, reason, request, tmp_path):
    """`on` is refused before the first step."""
    exp = makers.changed(request.getfixturevalue(name), **changes)
    with pytest.raises(UserError, match=f"train.resident.*{reason}"):
        runs.run(exp, tmp_path / "run", quiet=True)


def test_changes_of_an_unknown_transform_are_the_hosts(images):
    """It has no second half that a program could compute."""
    spec = ImageSpec(8, 8, (0.5,) * 3, (0.5,) * 3, resize_to=(8, 8))

    class Mine:
        def __init__(self):
            inner = ImageTransform(spec, ("flip",))
            self.collate, self.lengths, self.make = inner.collate, inner.lengths, inner

        def __call__(self, record, rng=None):
            return self.make(record, rng)

    for augment, reason in ((("flip",), "data.augment changes the examples from epoch to epoch"), ((), None)):
        engine = build(makers.changed(images, data__augment=augment), transform=Mine())
        assert Resident(engine).why_not() == reason


def test_what_is_too_large_is_sent_batch_by_batch(images, monkeypatch):
    """More than a tenth of a device's memory."""
    engine = build(images)
    resident = Resident(engine)
    assert resident.why_not() is None
    assert resident.nbytes == len(engine.sets["train"]) * (8 * 8 * 3)
    monkeypatch.setattr("tl_jax.parallel.mesh.memory", lambda mesh: 9 * resident.nbytes)
    assert "10% of a device's memory" in resident.why_not()


def test_on_a_cpu_auto_keeps_only_features(images, probe):
    """A step of the whole network takes longer than what a dispatch would save."""
    auto = makers.changed(images, train__resident="auto")
    assert "a CPU has no other memory" in Resident(build(auto)).why_not()
    assert "train.log_every is 1" in Resident(build(makers.changed(auto, train__log_every=1))).why_not()
    engine = build(makers.changed(probe, train__resident="auto"))
    caching.Cache(engine).fill(engine.init())
    assert Resident(engine).why_not() is None


@pytest.mark.parametrize("name", ["changed", "probe"])
def test_an_evaluation_is_that_of_single_calls(name, request):
    """Bit for bit, in the order of the split, of kept features and of pictures, which training alone changes; the
    last batch is filled up."""
    engine = build(request.getfixturevalue(name))
    state = engine.init()
    if name == "probe":
        caching.Cache(engine).fill(state)
    examples = engine.sets["validation"]
    assert len(examples) % engine.exp.train.batch_size
    judged = Resident(engine).beside("validation")
    ours = evaluation.outputs(engine, state, examples, judged)
    theirs = evaluation.outputs(engine, state, examples)
    assert ours.keys() == theirs.keys() and len(ours["loss"]) == len(examples)
    for part, value in theirs.items():
        np.testing.assert_array_equal(ours[part], value, err_msg=part)


def test_a_run_evaluates_in_one_dispatch(changed, tmp_path, monkeypatch):
    """No batch of the validation set is sent between training steps, and one program serves all evaluations."""
    seen, programs, outputs = [], [], Resident.outputs

    def watched(self, state):
        found = outputs(self, state)
        programs.append(self._forward._cache_size())
        return found

    fit = runs.loop.fit

    def fitting(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr("tl_jax.feed.Feed.eval_batches", lambda *_: seen.append("sent") or iter(()))
            return fit(*arguments, **options)

    monkeypatch.setattr(Resident, "outputs", watched)
    monkeypatch.setattr(runs.loop, "fit", fitting)
    runs.run(changed, tmp_path / "run", quiet=True)
    assert not seen and programs == [1, 1]


def test_a_split_that_cannot_stay_beside_the_training_set_is_sent(images, probe, monkeypatch):
    """Both count, and batches of several lengths are several programs."""
    resident = Resident(build(images))
    other = Resident(build(images), split="validation")
    for room, fits in ((1.0, True), (0.9, False)):
        limit = 10 * room * (resident.nbytes + other.nbytes)
        monkeypatch.setattr("tl_jax.parallel.mesh.memory", lambda mesh, limit=limit: limit)
        assert (resident.beside("validation") is not None) == fits
    monkeypatch.undo()
    assert Resident(build(probe)).beside("validation") is None
