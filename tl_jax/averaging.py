# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Finished runs averaged: on the way from pretrained to tuned weights (WiSE-FT), and soups of several runs.

    found = average_runs(["runs/x"])                              # eleven networks from pretrained to tuned
    found = average_runs(["runs/a", "runs/b"], to="out/soup")     # uniform and greedy, the best one written
    print(found["table"])

The arithmetic is in `core.averaging`; here are runs, what they must share, and how good what they make is.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tl_jax import calibration, closing, evaluation, runs
from tl_jax.core import folder as folders
from tl_jax.core.averaging import between, greedy_soup, mean
from tl_jax.core.chain import Params
from tl_jax.core.errors import UserError, shorten
from tl_jax.engine import Engine
from tl_jax.report import table
from tl_jax.train.state import State

_ALPHAS = tuple(i / 10 for i in range(11))
# In what runs must agree to be averaged, and what of it changes no more than a seed does.
_AGREE = ("model", "task", "data", "plan", "phases", "recipe", "distill", "pretrain", "train.metric")
_MAY_DIFFER = ("data.augment", "data.magnitude", "data.threads")


def average_runs(workdirs: Sequence[str], to: str | None = None) -> dict[str, Any]:
    """Average finished runs and judge every average on validation and test data, the runs themselves beside them.

    One run: eleven networks from its pretrained weights (with its own new head) to its tuned ones. Several, which may
    differ in seed, optimizer, augmentation and length: the uniform and the greedy soup. The best is the one with the
    best validation metric, of equals the one with the smallest validation loss.

    Args:
      to: folder to write the best to, as it is published, with the table as its model card.

    Returns:
      "best": its name; "rows": of each its metrics by split, with 95 % intervals, and for classification its
      calibration error on test data before and after the temperature that validation data ask for; "table" as Markdown.

    Raises:
      UserError: runs that are not finished, began from no or from other weights, or were trained on other data, another
        plan or by adapters; no validation split; a folder that is not empty.
    """
    _check_runs(workdirs)
    if to is not None and epath.Path(to).exists() and (epath.Path(to).is_file() or any(epath.Path(to).iterdir())):
        raise UserError(to, "exists and is not empty", "give a new folder")
    engine, state = runs.open_run(workdirs[0], with_data=True)
    if "validation" not in engine.sets:
        raise UserError(str(workdirs[0]), "has no validation split, by which the best is chosen")
    if len(workdirs) == 1:
        first, makers = "alpha", _steps_between(engine, state, workdirs[0])
        rows = [_row(engine, _with_leaves(state, make()), name) for name, make in makers.items()]
    else:
        others = [runs.open_run(workdir) for workdir in workdirs[1:]]
        # The best checkpoint of a run may be of an earlier phase than another's.
        engine = engine.phase(max(each.number for each in (engine, *(other for other, _ in others))))
        states = [state, *(other for _, other in others)]
        first, (makers, rows) = "network", _soups(engine, states, workdirs)
    best = max(rows, key=functools.partial(_rank, engine))["name"]
    text = f"{table.averages(rows, first, closing.chosen_metric(engine)[0])}\n\nBest on validation: {first} {best}."
    stats = {path for stages in engine.chains.values() for stage in stages for path in stage.stats()}
    if stats := stats.intersection(engine.changing):
        text += f"\nRunning statistics ({len(stats)} leaves) are averaged like all others."
    if to is not None:
        adapted = engine.to_pretrained(_with_leaves(state, makers[best]()))
        adapted.save(to)
        if jax.process_index() == 0:
            base, names = pathlib.Path(adapted.receipt.source).name, ", ".join(map(str, workdirs))
            head = f"---\nlibrary_name: transformers\nbase_model: {base}\n---\n# {engine.exp.name}: {first} {best}\n"
            (pathlib.Path(to) / "README.md").write_text(f"{head}\nAveraged with tl_jax from {names}.\n\n{text}\n")
    return {"best": best, "rows": rows, "table": text}


def _steps_between(engine: Engine, state: State, workdir: str) -> dict[str, Callable[[], Params]]:
    start, loaded = engine.init_with_receipt()
    began = {path: leaf for path, leaf in _leaves(engine, start).items() if path not in loaded.receipt.fresh}
    if not began:
        what = "nothing that it trained was pretrained, so there is nothing between"
        raise UserError(str(workdir), what, "give a run with another plan, or several runs")
    return {f"{alpha:.1f}": functools.partial(between, began, _leaves(engine, state), alpha) for alpha in _ALPHAS}


def _soups(engine: Engine, states: Sequence[State], workdirs: Sequence[str]):
    """What makes each network, by name, and their rows."""
    state = states[0]
    fresh = folders.read_json(epath.Path(workdirs[0]) / "receipt.json")["fresh"]
    drawn = sorted(set(fresh) - set(engine.changing))
    odd = [path for path in drawn for other in states if not np.array_equal(other.frozen[path], state.frozen[path])]
    if odd:
        what = f"frozen parameters that the seed drew differ between the runs: {shorten(dict.fromkeys(odd))}"
        raise UserError("average", what, "give runs of one seed, or train them")
    # On the devices of the first run, whatever mesh the others had.
    places = {path: leaf.sharding for path, leaf in _leaves(engine, state).items()}
    trees = [
        {path: jax.device_put(leaf, places[path]) for path, leaf in _leaves(engine, each).items()} for each in states
    ]
    rows = [_row(engine, _with_leaves(state, tree), str(name)) for name, tree in zip(workdirs, trees)]
    order = sorted(range(len(trees)), key=lambda i: _rank(engine, rows[i]), reverse=True)
    metric, larger = closing.chosen_metric(engine)

    def evaluate(tree):
        value = evaluation.measure(engine, _with_leaves(state, tree), engine.sets["validation"]).metrics[metric]
        return value if larger else -value

    soup, chosen = greedy_soup([trees[i] for i in order], evaluate)
    made = {str(name): tree for name, tree in zip(workdirs, trees)}
    soups = {"uniform soup": mean(trees), f"greedy soup of {len(chosen)}": soup}
    rows += [_row(engine, _with_leaves(state, tree), name) for name, tree in soups.items()]
    rows[-1]["made_of"] = [str(workdirs[order[i]]) for i in chosen]
    return {name: lambda tree=tree: tree for name, tree in (made | soups).items()}, rows


def _row(engine: Engine, state: State, name: str) -> dict[str, Any]:
    """Metrics of both splits with intervals, in the form of a summary."""
    sets = {split: engine.sets[split] for split in ("validation", "test") if split in engine.sets}
    outputs = {split: evaluation.outputs(engine, state, examples) for split, examples in sets.items()}
    row: dict[str, Any] = {"name": name, "intervals": {}}
    for split, examples in sets.items():
        found = evaluation.judge(engine, outputs[split], examples, intervals=True)
        row[split] = dict(found.metrics)
        row["intervals"][split] = {metric: list(pair) for metric, pair in found.intervals.items()}
    if calibration.fits(engine.task):
        row["temperature"] = calibration.temperature(outputs["validation"], sets["validation"].labels)
        for key, value in (("ece", 1.0), ("ece at temperature", row["temperature"])):
            if "test" in sets and value is not None:
                found, bounds = calibration.measure(outputs["test"], sets["test"].labels, value)
                row["test"][key], row["intervals"]["test"][key] = found["ece"], bounds["ece"]
    return row


def _rank(engine: Engine, row: Mapping[str, Any]) -> tuple[float, float]:
    metric, larger = closing.chosen_metric(engine)
    value = row["validation"][metric]
    # NaN, as of a network that diverged on the way, comes last.
    score = -math.inf if math.isnan(value) else value if larger else -value
    return score, -row["validation"]["loss"]


def _leaves(engine: Engine, state: State) -> Params:
    """What training has moved, with averages where they are kept, as it is evaluated."""
    adapted = state.adapted
    return {path: adapted[path] for path in engine.changing}


def _with_leaves(state: State, tree: Params) -> State:
    groups = {"trained": state.trained, "stats": state.stats, "frozen": state.frozen}
    moved = {name: {path: tree.get(path, leaf) for path, leaf in group.items()} for name, group in groups.items()}
    return dataclasses.replace(state, **moved, ema={})


def _check_runs(workdirs: Sequence[str]) -> None:
    """Raise UserError unless they are finished, began alike and were asked alike."""
    twice = [str(name) for i, name in enumerate(workdirs) if name in workdirs[:i]]
    open_ones = [str(name) for name in workdirs if not (epath.Path(name) / "summary.json").exists()]
    if twice or open_ones or not workdirs:
        texts = [f"{name} is given twice" for name in twice] + [f"{name} holds no finished run" for name in open_ones]
        raise UserError("average", "; ".join(texts) or "needs a run, or several", "give folders of finished runs")
    read = [
        {name: folders.read_json(epath.Path(workdir) / f"{name}.json") for name in ("config", "receipt", "splits")}
        for workdir in workdirs
    ]
    wrong = [f"{name} began from no weights" for name, run in zip(workdirs, read) if not run["receipt"]["digest"]]
    # The mean of two products is not the product of the means, so neither factor of a LoRA may be averaged.
    plans = [run["config"]["plan"] for run in read]
    # And a prompt has no place in published files.
    adapted = [plan.get("adapters") or plan.get("prompt") or plan["preset"] == "lora" for plan in plans]
    wrong += [f"{name} trained adapters or a prompt" for name, found in zip(workdirs, adapted) if found]
    for name, run in zip(workdirs[1:], read[1:]):
        found = folders.differences(read[0]["config"], run["config"])
        found = [text for text in found if text.startswith(_AGREE) and not text.startswith(_MAY_DIFFER)]
        if found:
            wrong.append(f"{name} has another config ({shorten(found)})")
        if run["receipt"]["digest"] != read[0]["receipt"]["digest"]:
            wrong.append(f"{name} began from other weights")
        if run["splits"] != read[0]["splits"]:
            wrong.append(f"{name} split its data otherwise")
    if wrong:
        do = f"give runs that began and were split as {workdirs[0]}"
        alone = "give a run that trained published weights themselves"
        raise UserError("average", "; ".join(wrong), do if len(workdirs) > 1 else alone)
