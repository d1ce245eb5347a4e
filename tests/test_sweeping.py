# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Runs side by side in one program: each is the run that it would be alone."""

import makers
import pytest

from tl_jax import runs
from tl_jax.config import Adapter
from tl_jax.core.errors import UserError
from tl_jax.sweeping import sweep

pytestmark = pytest.mark.usefixtures("one_device")

# A head that is drawn, and does not train.
_BLOCKS = {"plan__preset": None, "plan__lr": (), "plan__train": ("blocks/.*",), "data__buckets": ()}


@pytest.fixture
def exp(tmp_path):
    """A head over kept features, whose first evaluation may be its best."""
    exp = makers.text_run(tmp_path, epochs=3, log_every=3)
    return makers.changed(exp, plan__preset="linear_probe", optimizer__learning_rate=0.1)


def assert_alone(exp, points, tmp_path):
    """Metrics and step of every point are those of a run of its own, to 1e-4: sums in another order."""
    found = sweep(exp, points)
    assert [one.point for one in found] == points
    for number, one in enumerate(found):
        alone = makers.changed(exp, **{name.replace(".", "__"): value for name, value in one.point.items()})
        summary = runs.run(alone, tmp_path / str(number), quiet=True)
        assert one.step == summary["tested_step"]
        assert one.validation == pytest.approx(summary["validation"], abs=1e-4)
        assert one.test == pytest.approx(summary["test"], abs=1e-4)
    return found


def test_every_point_is_the_run_that_it_would_be_alone(exp, tmp_path):
    """Rates, decays and seeds, which draw another head and another order of the batches."""
    points = [
        {"optimizer.learning_rate": 0.1},
        {"optimizer.learning_rate": 0.003, "seed": 1},
        {"optimizer.weight_decay": 3.0, "seed": 1},
    ]
    found = assert_alone(exp, points, tmp_path)
    assert len({one.validation["loss"] for one in found}) == 3


def test_adapters_share_their_base(exp, tmp_path):
    """Nothing is kept, as they begin in the first block; averages and dropout are every run's own."""
    adapters = ((r"blocks/\d+/attn/(query|value)/kernel", Adapter("lora", rank=2)),)
    exp = makers.changed(exp, plan__preset=None, plan__lr=(), plan__adapters=adapters, data__buckets=(), train__ema=0.5)
    exp = makers.changed(exp, optimizer__learning_rate=0.01, train__epochs=2)
    assert_alone(exp, [{"seed": 0}, {"seed": 3, "optimizer.learning_rate": 0.02}], tmp_path)


def test_the_last_step_counts_where_the_config_says_so(exp, tmp_path):
    """`train.restore_best=False`."""
    (found,) = assert_alone(makers.changed(exp, train__restore_best=False), [{"seed": 2}], tmp_path)
    assert found.step == 18


@pytest.mark.parametrize(
    "changes,points,message",
    [
        ({}, [{"train.epochs": 2}], "differ in train.epochs. Give values of optimizer.learning_rate"),
        ({}, [], "are none"),
        ({"recipe__name": "lp_ft"}, [{"seed": 0}], "takes no phases"),
        ({"train__patience": 2}, [{"seed": 0}], "takes no train.patience"),
        ({"train__cache": "off"}, [{"seed": 0}], "batches are of several lengths"),
        (_BLOCKS, [{}, {"seed": 1}], "head.*anew"),
    ],
)
def test_what_cannot_be_done_side_by_side_is_refused(exp, changes, points, message):
    """In one line, before anything is trained."""
    with pytest.raises(UserError, match=message):
        sweep(makers.changed(exp, **changes), points)
