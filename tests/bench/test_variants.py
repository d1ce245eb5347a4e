# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Variants of a config: what each asks for, and the table of what they came to."""

import json
import re

import makers
import pytest

from tl_jax import config
from tl_jax.bench import variants
from tl_jax.core.errors import UserError


@pytest.mark.parametrize("of", [variants.METHODS, variants.REMEDIES, variants.QUANTIZED])
def test_every_variant_is_a_config_that_works(of, tmp_path):
    """All train for the same number of steps, phases before the last included, on the same few examples."""
    exp = makers.image_run(tmp_path)
    for overrides in of.values():
        found = variants.variant(exp, overrides, labels=5, steps=30, seed=2)
        config.validate(found)
        assert sum(phase.steps for phase in found.phases) + found.train.steps == 30
        assert (found.data.per_class, found.seed, found.train.epochs) == (5, 2, None)


def test_rates_are_multiples_of_the_configs(tmp_path):
    """The config's rate is that of training everything."""
    exp = makers.image_run(tmp_path)
    full, head = (variants.variant(exp, variants.METHODS[name], None, 3, 0) for name in ("full", "head"))
    assert full.optimizer.learning_rate == exp.optimizer.learning_rate == head.optimizer.learning_rate / 10


def test_a_run_leaves_its_figures_and_is_not_made_again(tmp_path, monkeypatch):
    """Two seeds of one variant in two processes: mean ± sd, what trained, memory and bytes; the second call runs
    nothing."""
    exp = makers.write_config(makers.image_run(tmp_path, accumulate=1), tmp_path / "exp.json")
    words = [f"--config={exp}", "--of=methods", "--only=head", "--labels=4", "--steps=2", "--seeds=0,1"]
    variants.main([*words, f"--workdir={tmp_path / 'runs'}"])
    results = json.loads((tmp_path / "runs" / "results.json").read_text())["runs"]
    assert [run["seed"] for run in results] == [0, 1] and {run["steps"] for run in results} == {2}
    assert {run["examples"]["train"] for run in results} == {12}
    assert all(run["checkpoint_bytes"] > 4 * 3 * run["trained_parameters"] for run in results)
    assert all(run["peak_bytes"] > 1e8 for run in results)
    monkeypatch.setattr(variants.subprocess, "Popen", None)
    variants.main([*words, f"--workdir={tmp_path / 'runs'}"])
    with pytest.raises(UserError, match="0: holds a run of another config"):
        variants.main([*words, f"--workdir={tmp_path / 'runs'}", "--config.optimizer.learning_rate=0.5"])


def test_the_table_has_a_line_for_each_variant_and_size():
    """Mean ± sample standard deviation of every metric but the loss, and the mean recall of each class."""
    runs = [
        {
            "variant": "head",
            "labels": "20",
            "test": {"accuracy": value, "loss": 9.0},
            "details": {"recall_by_class": {"a": value, "b": 0.5}},
            "trained_parameters": 1234,
            "seconds": 2.0,
            "cpu_seconds": 3.0,
            "peak_bytes": 5e8,
            "checkpoint_bytes": 1e6,
        }
        for value in (0.7, 0.9)
    ]
    line = variants.table(runs).splitlines()[-1]
    assert re.split(r"\s*\|\s*", line)[1:-1] == [
        *("20", "head", "2", "0.800 ± 0.141", "0.800, 0.500", "1,234", "2", "3", "500 MB", "1.00 MB")
    ]
