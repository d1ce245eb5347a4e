# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics log is strict JSON, survives kills, and forgets what a resume undoes."""

import json
import math
import struct

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tl_jax.core.errors import UserError
from tl_jax.report import metrics


def written(folder, steps) -> metrics.MetricsLog:
    log = metrics.MetricsLog(folder)
    for step in steps:
        log.write(step, "train", {"loss": step / 10})
    return log


def events(folder) -> list[Event]:
    """The records of all event files, in TensorBoard's order of names: length, its checksum, data, checksum."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_lines_come_back_as_they_were_written(tmp_path):
    """Numbers, arrays and text, in order; nothing there reads as no lines."""
    assert metrics.read(tmp_path / "none") == []
    with metrics.MetricsLog(tmp_path / "run") as log:
        log.write(1, "train", {"loss": jnp.float32(0.5), "examples": 32})
        log.write(1, "validation", {"accuracy": 0.25, "note": "é"})
    assert metrics.read(tmp_path / "run") == [
        {"step": 1, "kind": "train", "loss": 0.5, "examples": 32},
        {"step": 1, "kind": "validation", "accuracy": 0.25, "note": "é"},
    ]


def test_a_number_that_is_not_finite_is_seen_in_strict_json(tmp_path):
    """The file holds no bare NaN, which strict readers refuse, and `read` gives the float back."""
    with metrics.MetricsLog(tmp_path) as log:
        log.write(1, "train", {"loss": jnp.float32(jnp.nan), "norm": -math.inf})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["norm"]) == ("NaN", "-Infinity")
    (back,) = metrics.read(tmp_path)
    assert math.isnan(back["loss"]) and back["norm"] == -math.inf


def test_a_resume_forgets_later_steps_and_a_torn_line(tmp_path):
    """Lines after the restored step and the one a kill cut short are gone; the rest is unchanged."""
    written(tmp_path, (1, 2, 3)).close()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"step": 2, "ki')
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3]

    log = metrics.MetricsLog(tmp_path)
    log.truncate(2)
    log.write(3, "train", {"loss": 9.0})
    log.close()

    assert path.read_text().startswith("".join(lines[:2]))
    assert [line["loss"] for line in metrics.read(tmp_path)] == [0.1, 0.2, 9.0]
    assert {p.name.partition(".out")[0] for p in tmp_path.iterdir()} == {"metrics.jsonl", "events"}


def test_tensorboard_hides_what_a_resume_undoes(tmp_path):
    """The second session start of a folder, at the step after the restored one, makes TensorBoard purge."""
    written(tmp_path, (1, 2, 3)).close()
    log = metrics.MetricsLog(tmp_path)
    log.truncate(1)
    log.write(2, "validation", {"accuracy": 0.5})
    log.close()

    found = events(tmp_path)
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert scalars == [(step, "train/loss", pytest.approx(step / 10)) for step in (1, 2, 3)] + [
        (2, "validation/accuracy", 0.5)
    ]
    assert [e.step for e in found if e.session_log.status == SessionLog.START] == [0, 2]


def test_a_store_that_cannot_append_holds_the_same_bytes(tmp_path, monkeypatch):
    """The way of `gs://` writes what the local way writes."""
    written(tmp_path / "local", (1, 2)).close()
    monkeypatch.setattr(metrics, "_is_remote", lambda path: True)
    written(tmp_path / "remote", (1, 2)).close()
    local, remote = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("local", "remote"))
    assert local == remote


def test_a_line_that_is_no_json_is_named(tmp_path):
    """The error gives the file and the line number."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match="metrics.jsonl: line 2 is not"):
        metrics.read(tmp_path)
