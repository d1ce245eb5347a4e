# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run came to, and how runs compare, as Markdown that also reads well on a terminal.

    print(closing(summary))                      # train, validation, test and the gaps between them
    print(compare(["runs/a", "runs/b"]))         # one row for each config, mean ± sd over its seeds

Reads the `summary.json` that a finished run leaves. Knows that schema, not how its numbers came about.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from tl_jax.core.errors import UserError, shorten

_SPLITS = ("train", "validation", "test")
_NEEDED = ("name", "config_digest", "seed", "steps", "seconds", "trained_parameters", "metric", *_SPLITS)
# Metrics of which 1 is perfect; for a loss or an error rate, a high training value is no sign of memorising.
_PERFECT_IS_ONE = ("accuracy", "f1", "exact_match", "precision", "recall", "auc", "iou")
_MOST_GROUPS = 10
_CALIBRATION = ("ece", "ece at temperature")


def markdown(rows: list[dict[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table, padded so that columns line up; a value that a row lacks is left blank."""
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(map(str, columns), *cells)]
    lines = [list(map(str, columns)), ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |" for line in lines)


def closing(summary: dict[str, Any]) -> str:
    """The table at the end of a run: each metric by split, with gaps and intervals, and what follows from it.

    It says that the model memorises when the main metric is one of which 1 is perfect, is at least 0.99 on training
    data, and falls on validation by more than 0.1 and by more than the width of its interval (twice the half).

    Args:
      summary: what `summary.json` holds; "intervals", "groups" and "baseline" may be missing.
    """
    names = list(dict.fromkeys(name for split in _SPLITS for name in summary[split]))
    rows = []
    for name in names:
        row = {"metric": name} | {split: _with_interval(summary, split, name) for split in _SPLITS}
        for upper, lower in (("train", "validation"), ("validation", "test")):
            if name in summary[upper] and name in summary[lower]:
                row[f"{upper} - {lower}"] = float(summary[upper][name]) - float(summary[lower][name])
        rows.append(row)
    parts = [markdown(rows, ("metric", *_SPLITS, "train - validation", "validation - test"))]
    parts += [text for text in (_memorises(summary), _groups(summary), _against_baseline(summary)) if text]
    return "\n\n".join(parts)


def compare(folders: Iterable[str | epath.Path]) -> str:
    """A table of finished runs: one row for each config, with mean ± sample standard deviation over its seeds.

    Runs share a row when their configs differ in the seed alone; of equal names, the digest tells them apart. A single
    run shows its confidence interval where there is one.

    Raises:
      UserError: a folder without a readable `summary.json`, naming all such folders.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for summary in _summaries(folders):
        groups.setdefault((summary["name"], summary["config_digest"]), []).append(summary)
    names = [name for name, _ in groups]
    rows = []
    for (name, digest), runs in groups.items():
        row = {"config": f"{name} ({digest[:6]})" if names.count(name) > 1 else name}
        row["seeds"] = ", ".join(str(run["seed"]) for run in runs)
        row["metric"] = runs[0]["metric"]
        for split in _SPLITS:
            row[split] = _spread(runs, split)
        row["steps"] = _mean(run["steps"] for run in runs)
        row["seconds"] = _mean(run["seconds"] for run in runs)
        row["trained parameters"] = runs[0]["trained_parameters"]
        rows.append(row)
    return markdown(rows, ("config", "seeds", "metric", *_SPLITS, "steps", "seconds", "trained parameters"))


def averages(rows: Sequence[dict[str, Any]], first: str, metric: str) -> str:
    """A table of networks made from one another: the metric that chooses on validation data, and on test data that
    metric, the loss and, where there is one, the calibration error before and after a temperature.

    Args:
      rows: each in the form of a summary, with "name" and perhaps "temperature".
      first: what the names are.
      metric: the name of the metric.
    """
    shown = [("validation", metric), *(("test", name) for name in dict.fromkeys((metric, "loss", *_CALIBRATION)))]
    shown = [(split, name) for split, name in shown if any(name in row.get(split, {}) for row in rows)]
    cells = [
        {first: row["name"]}
        | {f"{split} {name}": _with_interval({"test": {}, **row}, split, name) for split, name in shown}
        | ({} if row.get("temperature") is None else {"temperature": row["temperature"]})
        for row in rows
    ]
    last = ["temperature"] if any("temperature" in row for row in rows) else []
    return markdown(cells, (first, *(f"{split} {name}" for split, name in shown), *last))


def calibrated(found: dict[str, Any]) -> str:
    """What a temperature changed: loss and calibration error of each split, before and after it.

    Args:
      found: what `calibration.json` holds.
    """
    rows = [
        {"": f"{split} {name}"} | {when: _with_interval(found[when], split, name) for when in ("before", "after")}
        for split in _SPLITS
        for name in found["before"].get(split, {})
    ]
    return markdown(rows, ("", "before", "after"))


def _memorises(summary: dict) -> str:
    name = summary["metric"]
    seen, new = (float(summary[split].get(name, math.nan)) for split in ("train", "validation"))
    intervals = summary.get("intervals", {})
    low, high = intervals.get("validation", intervals.get("test", {})).get(name, (0.0, 0.0))
    share = any(word in name for word in _PERFECT_IS_ONE)
    if not (share and seen >= 0.99 and seen - new > max(0.1, high - low)):
        return ""
    return (
        f"The model memorises: {name} is {seen:.4g} on its training data and {new:.4g} on validation. "
        "More data, augmentation, or a plan that trains less would narrow the gap."
    )


def _groups(summary: dict) -> str:
    groups = summary.get("groups") or {}
    names = list(dict.fromkeys(name for metrics in groups.values() for name in metrics))
    rows = [{"group": group} | metrics for group, metrics in list(groups.items())[:_MOST_GROUPS]]
    more = f"\n{len(groups) - _MOST_GROUPS} more groups are in summary.json." if len(groups) > _MOST_GROUPS else ""
    return markdown(rows, ("group", *names)) + more if groups else ""


def _against_baseline(summary: dict) -> str:
    baseline = summary.get("baseline")
    if not baseline:
        return ""
    title = baseline["name"] if baseline["name"] != summary["name"] else "baseline"
    runs, name = {"adapted": summary, title: baseline}, summary["metric"]
    rows = [
        {"": f"test {metric}"} | {key: _with_interval(run, "test", metric) for key, run in runs.items()}
        for metric in summary["test"]
    ]
    for field in ("steps", "seconds", "trained_parameters"):
        rows.append({"": field.replace("_", " ")} | {key: run[field] for key, run in runs.items()})
    text = markdown(rows, ("", *runs))
    if name in summary["test"] and name in baseline["test"]:
        difference = float(summary["test"][name]) - float(baseline["test"][name])
        text += f"\n\nAdapted, test {name} differs from that of {title} by {difference:+.4g}"
        bounds = [run.get("intervals", {}).get("test", {}).get(name) for run in runs.values()]
        if all(bounds):
            apart = bounds[0][0] > bounds[1][1] or bounds[1][0] > bounds[0][1]
            text += "; their intervals " + ("do not overlap" if apart else "overlap")
        text += "."
    return text


def _with_interval(summary: dict, split: str, name: str) -> str:
    """'0.89 [0.87, 0.91]'; blank where the split has no such metric."""
    if name not in summary[split]:
        return ""
    bounds = summary.get("intervals", {}).get(split, {}).get(name)
    text = _cell(summary[split][name])
    return f"{text} [{_cell(bounds[0])}, {_cell(bounds[1])}]" if bounds else text


def _spread(runs: list[dict], split: str) -> str:
    """'0.89 ± 0.01' over seeds, or one run's value with its interval."""
    name = runs[0]["metric"]
    values = [float(run[split][name]) for run in runs if name in run[split]]
    if len(values) < 2:
        return _with_interval(runs[0], split, name)
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}"


def _mean(values: Iterable[float]) -> float | int:
    mean = statistics.fmean(values)
    return int(mean) if mean.is_integer() else mean


def _summaries(folders: Iterable[str | epath.Path]) -> list[dict]:
    found, wrong = [], []
    for folder in folders:
        path = epath.Path(folder) / "summary.json"
        try:
            summary = json.loads(path.read_text())
            missing = [field for field in _NEEDED if field not in summary]
        except OSError:
            wrong.append(f"{folder} has no summary.json, so the run is missing or not finished")
        except (ValueError, TypeError) as error:
            wrong.append(f"{path} is not a summary ({error})")
        else:
            found.append(summary)
            if missing:
                wrong.append(f"{path} lacks {shorten(missing)}")
    if wrong:
        raise UserError("compare", "; ".join(wrong), "give folders of finished runs")
    return found


def _cell(value: Any) -> str:
    if isinstance(value, float):
        # Seconds and counts need no exponent, metrics no more than four digits.
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")
