# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whether two runs are the same run, bit for bit: what a kill and a resume must leave."""

import json
import pathlib

import jax
import numpy as np

from tl_jax import runs
from tl_jax.config import Experiment
from tl_jax.report import metrics
from tl_jax.train.callbacks import Callback

# What a clock says, which no run repeats.
_TIMES = ("examples_per_second", "waited")


class PowerCut(Exception):
    """What ends a run in the middle."""


class Cutting(Callback):
    """Ends the run when this step is logged."""

    def __init__(self, at: int):
        self.at = at

    def on_log(self, step, metrics):
        """Raise PowerCut."""
        if step == self.at:
            raise PowerCut


def broken_off(exp: Experiment, workdir: pathlib.Path, steps: tuple[int, ...]) -> None:
    """Run it, broken off after each of these steps, without a save there, and gone on with; then to its end."""
    for step in steps:
        try:
            runs.run(exp, workdir, callbacks=[Cutting(step)], quiet=True)
        except PowerCut:
            continue
        raise AssertionError(f"the run never came to step {step}")
    runs.run(exp, workdir, quiet=True)


def assert_same_run(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """Parameters, statistics, optimizer state, every logged number and the checksum of every batch are equal."""
    jax.tree.map(np.testing.assert_array_equal, _last_state(workdir), _last_state(other))
    assert _lines(workdir) == _lines(other)
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (workdir, other))
    for name in ("steps", "tested_step", "train", "validation", "test", "intervals", "details"):
        assert ours[name] == theirs[name], name


def _lines(workdir: pathlib.Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in metrics.read(workdir)]


def _last_state(workdir: pathlib.Path):
    """What the last checkpoint holds."""
    file = workdir / "config.json"
    kept = file.read_text()
    changed = json.loads(kept)
    changed["train"]["restore_best"] = False
    file.write_text(json.dumps(changed))
    try:
        state = runs.open_run(workdir)[1]
    finally:
        file.write_text(kept)
    return state.moving, state.frozen
