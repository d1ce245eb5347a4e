# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A finished run's probabilities, measured and mended by one temperature (Guo et al. 2017).

    found = calibrate_run("runs/x")          # writes runs/x/calibration.json, which predictions use from then on
    t = saved_temperature("runs/x")          # None where nobody calibrated it

The temperature is fitted on validation data, so only test data tell what it is worth. It changes no chosen class.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from tl_jax import evaluation, runs
from tl_jax.core import calibration, metrics
from tl_jax.core import folder as folders
from tl_jax.core.errors import UserError
from tl_jax.tasks import classification

_FILE = "calibration.json"


def calibrate_run(workdir: str) -> dict[str, Any]:
    """Fit the temperature on the run's validation split and write it to the run's folder.

    Returns:
      The content of `calibration.json`: "temperature", and loss and calibration error ("ece") of both splits "before"
      and "after" with 95 % intervals, each in the form of a summary.

    Raises:
      UserError: no finished run there, no validation split, a task without probabilities of classes, or validation data
        that no temperature fits best.
    """
    folder = epath.Path(workdir)
    if not (folder / "summary.json").exists():
        raise UserError(str(workdir), "holds no finished run", "let it finish first")
    engine, state = runs.open_run(workdir, with_data=True)
    if not fits(engine.task):
        raise UserError(str(workdir), f"is a run of {engine.exp.task.name}", "only classification has a temperature")
    if "validation" not in engine.sets:
        raise UserError(str(workdir), "has no validation split to fit a temperature on")
    sets = {split: engine.sets[split] for split in ("validation", "test") if split in engine.sets}
    outputs = {split: evaluation.outputs(engine, state, examples) for split, examples in sets.items()}
    found = temperature(outputs["validation"], sets["validation"].labels)
    if found is None:
        what = f"gets {len(sets['validation'])} validation examples all right, or no better than by chance"
        raise UserError(str(workdir), f"{what}, so no temperature is the likeliest", "give it more validation data")
    result: dict[str, Any] = {"temperature": found}
    for name, value in (("before", 1.0), ("after", found)):
        result[name] = {"intervals": {}}
        for split, examples in sets.items():
            result[name][split], result[name]["intervals"][split] = measure(outputs[split], examples.labels, value)
    if jax.process_index() == 0:
        folders.write_json(folder / _FILE, result)
    return result


def saved_temperature(workdir: str) -> float | None:
    """The temperature of a run that was calibrated.

    Raises:
      UserError: the file holds no positive number.
    """
    path = epath.Path(workdir) / _FILE
    found = folders.read_json(path)
    if found is None:
        return None
    value = found.get("temperature") if isinstance(found, dict) else None
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise UserError(str(path), f"temperature is {value!r}, must be a positive number", "calibrate the run again")
    return value


def fits(task) -> bool:
    """Whether the task gives each class a probability."""
    return isinstance(task, classification.Task)


def temperature(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float | None:
    """The likeliest temperature of a task's outputs, or None where none is; see `core.calibration`."""
    found = calibration.temperature(outputs["logits"], labels)
    return found if 0 < found < math.inf else None


def measure(outputs: Mapping[str, np.ndarray], labels: np.ndarray, temperature: float):
    """Loss and calibration error at a temperature, and their 95 % bootstrap intervals: two dicts by name."""
    weights = metrics.resamples(len(labels), seed=0)
    logits = outputs["logits"].astype(np.float64) / temperature
    found = {"loss": calibration.nll(logits, labels, weights), "ece": calibration.ece(logits, labels, weights)}
    return (
        {name: float(value[0]) for name, value in found.items()},
        {name: list(metrics.interval(value)) for name, value in found.items()},
    )
