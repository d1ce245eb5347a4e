# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Training sets that stay on the devices: the updates of single steps, many in one dispatch."""

import jax
import makers
import numpy as np
import pytest
import resuming

from tl_jax import caching, runs
from tl_jax.core.errors import UserError
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
def probe(tmp_path):
    """A head over features that are kept, of texts of two lengths."""
    exp = makers.text_run(tmp_path, epochs=3, log_every=5, resident="on")
    return makers.changed(exp, plan__preset="linear_probe", optimizer__learning_rate=0.1)


@pytest.mark.parametrize("name", ["images", "probe"])
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


def test_a_run_broken_off_goes_on_as_the_unbroken_one(probe, tmp_path):
    """Bit for bit, though the dispatches after the break begin elsewhere."""
    exp = makers.changed(probe, train__save_every=4, train__restore_best=False)
    runs.run(exp, tmp_path / "unbroken", quiet=True)
    resuming.broken_off(exp, tmp_path / "broken", (10,))
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
        ("images", {"data__augment": ("flip",)}, "data.augment changes the examples"),
        ("images", {"profile": "2:3"}, "profile follows single steps"),
        ("probe", {"train__cache": "off"}, "batches are of several lengths"),
    ],
)
def test_what_speaks_against_it_is_said(name, changes, reason, request, tmp_path):
    """`on` is refused before the first step."""
    exp = makers.changed(request.getfixturevalue(name), **changes)
    with pytest.raises(UserError, match=f"train.resident.*{reason}"):
        runs.run(exp, tmp_path / "run", quiet=True)


def test_what_is_too_large_is_sent_batch_by_batch(images, monkeypatch):
    """More than a tenth of a device's memory."""
    engine = build(images)
    resident = Resident(engine)
    assert resident.why_not() is None
    assert resident.nbytes == len(engine.sets["train"]) * (8 * 8 * 3 * 4)
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
