# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The closing table and the comparison say what the numbers say."""

import json
import statistics

import pytest

from tl_jax.core.errors import UserError
from tl_jax.report import table


def a_summary(**changes) -> dict:
    return {
        "name": "pets",
        "config_digest": "abcdef0123",
        "seed": 0,
        "steps": 2000,
        "seconds": 61.25,
        "trained_parameters": 1538,
        "total_parameters": 22_000_000,
        "train": {"accuracy": 0.93, "loss": 0.2},
        "validation": {"accuracy": 0.9, "loss": 0.31},
        "test": {"accuracy": 0.89, "loss": 0.33},
        "intervals": {"test": {"accuracy": [0.87, 0.91]}},
        "metric": "accuracy",
        "stopped": "finished",
    } | changes


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def write(folder, **changes):
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(a_summary(**changes)))
    return folder


def test_markdown_is_aligned_and_escaped():
    """Columns line up, a missing value is blank, and a bar in a name does not make a column."""
    text = table.markdown([{"a": "x|y", "b": 0.123456}, {"a": 1234567}], ("a", "b"))
    assert text.splitlines() == [
        "| a         | b      |",
        "| --------- | ------ |",
        "| x\\|y      | 0.1235 |",
        "| 1,234,567 |        |",
    ]


def test_closing_gives_gaps_and_intervals():
    """Every metric by split, the interval where there is one, and both gaps."""
    head, _, accuracy, loss = cells(table.closing(a_summary()))
    assert head == ["metric", "train", "validation", "test", "train - validation", "validation - test"]
    assert accuracy == ["accuracy", "0.93", "0.9", "0.89 [0.87, 0.91]", "0.03", "0.01"]
    assert loss == ["loss", "0.2", "0.31", "0.33", "-0.11", "-0.02"]


@pytest.mark.parametrize(
    "metric, train, validation, interval, memorises",
    [
        ("accuracy", 0.995, 0.80, [0.78, 0.82], True),
        ("macro_f1", 1.0, 0.5, [0.4, 0.6], True),
        ("accuracy", 0.98, 0.80, [0.78, 0.82], False),  # not learned by heart
        ("accuracy", 1.0, 0.91, [0.90, 0.92], False),  # a small gap
        ("accuracy", 1.0, 0.80, [0.65, 0.95], False),  # too few examples to tell
        ("loss", 1.0, 0.5, [0.4, 0.6], False),  # a loss of 1 is not perfect
    ],
)
def test_memorising_is_said_when_it_is_so(metric, train, validation, interval, memorises):
    """Near perfect on training data, and a gap that is neither small nor within the noise."""
    summary = a_summary(
        metric=metric,
        train={metric: train},
        validation={metric: validation},
        intervals={"validation": {metric: interval}},
    )
    assert ("memorises" in table.closing(summary)) == memorises


@pytest.mark.parametrize("high, words", [(0.75, "do not overlap"), (0.88, "overlap")])
def test_baseline_stands_beside_the_adapted_run(high, words):
    """Metrics, steps and seconds side by side, and the difference in words."""
    baseline = a_summary(
        name="from scratch", test={"accuracy": 0.71}, seconds=70.5, intervals={"test": {"accuracy": [0.67, high]}}
    )
    text = table.closing(a_summary(baseline=baseline)).split("\n\n", 1)[1]
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows[""] == ["adapted", "from scratch"]
    assert rows["test accuracy"] == ["0.89 [0.87, 0.91]", f"0.71 [0.67, {high}]"]
    assert rows["seconds"] == ["61.25", "70.5"] and rows["steps"] == ["2,000", "2,000"]
    assert f"that of from scratch by +0.18; their intervals {words}." in text


def test_groups_are_shown_and_many_are_counted():
    """Ten groups, and how many more there are."""
    groups = {f"patient={i}": {"accuracy": i / 20} for i in range(12)}
    text = table.closing(a_summary(groups=groups))
    assert "patient=9" in text and "patient=10" not in text and "2 more groups" in text


def test_compare_gives_mean_and_sd_over_seeds(tmp_path):
    """Runs equal but for the seed share a row; the figures are the library's."""
    values = [0.80, 0.84, 0.91]
    folders = [write(tmp_path / str(i), seed=i, test={"accuracy": v}, steps=10 * i) for i, v in enumerate(values)]
    head, _, row = cells(table.compare(folders))
    found = dict(zip(head, row))
    assert found["seeds"] == "0, 1, 2" and found["steps"] == "10"
    assert found["test"] == f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


def test_compare_keeps_unequal_configs_apart(tmp_path):
    """The same name with another digest is another row, told apart by it; single runs show their interval."""
    first, second = write(tmp_path / "a"), write(tmp_path / "b", config_digest="123456789", intervals={})
    rows = cells(table.compare([first, second]))[2:]
    assert [row[0] for row in rows] == ["pets (abcdef)", "pets (123456)"]
    assert [row[5] for row in rows] == ["0.89 [0.87, 0.91]", "0.89"]


def test_compare_names_every_run_it_cannot_read(tmp_path):
    """No folder, no JSON, and missing fields, in one line."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "summary.json").write_text("{")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "summary.json").write_text('{"name": "x"}')
    with pytest.raises(UserError) as error:
        table.compare([write(tmp_path / "good"), tmp_path / "none", tmp_path / "bad", tmp_path / "old"])
    text = str(error.value)
    assert "\n" not in text and "good" not in text
    assert "none has no summary.json" in text and "bad/summary.json is not a summary" in text and "old" in text
