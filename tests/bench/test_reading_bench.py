# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The bench of reading: what it times and what it asks the pipeline for; no real time is looked at."""

import re
import types

import makers
import pytest

from tl_jax.bench import reading
from tl_jax.core.errors import UserError
from tl_jax.data import pipeline
from tl_jax.data.images import ImageTransform
from tl_jax.engine import build

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("threads,ahead", [(0, 0), (1, 2)])
def test_the_rate_is_examples_over_seconds(tmp_path, monkeypatch, threads, ahead):
    """By a clock that goes on by two seconds when a batch of 16 is taken."""
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    batches = pipeline.batches

    def slowly(*given, **options):
        for batch in batches(*given, **options):
            clock.now += 2
            yield batch

    engine = build(makers.image_run(tmp_path))
    monkeypatch.setattr(reading, "time", clock)
    monkeypatch.setattr(pipeline, "batches", slowly)
    assert reading.rate(engine, threads, ahead, batches=5) == 8.0


def test_every_way_reads_what_a_run_reads(tmp_path, monkeypatch, capsys):
    """The table has a row a way, whose threads and batches ahead the pipeline was asked for, with augmentation."""
    asked, changed = [], []
    batches, call = pipeline.batches, ImageTransform.__call__

    def noted(*given, **options):
        asked.append((options["threads"], options["prefetch"]))
        return batches(*given, **options)

    def seen(self, record, rng=None):
        changed.append(rng is not None)
        return call(self, record, rng)

    monkeypatch.setattr(pipeline, "batches", noted)
    monkeypatch.setattr(ImageTransform, "__call__", seen)
    exp = makers.write_config(makers.image_run(tmp_path), tmp_path / "exp.json")
    reading.main([f"--config={exp}", "--batches=1", "--repeats=2"])
    *table, told = capsys.readouterr().out.strip().splitlines()
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in table[2:]]
    assert [(int(row[0]), int(row[1])) for row in rows] * 2 == asked and all(changed)
    assert all(float(row[2].replace(",", "")) > 0 for row in rows) and rows[0][3] == "1.00"
    assert told.endswith("batches of 16")


def test_nothing_to_time_is_refused(tmp_path):
    """Before anything is built."""
    exp = makers.write_config(makers.image_run(tmp_path), tmp_path / "exp.json")
    with pytest.raises(UserError, match="--repeats: is 0, must be at least 1"):
        reading.main([f"--config={exp}", "--repeats=0"])
