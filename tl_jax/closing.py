# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How a run closes: every split measured by its final state, and what `summary.json` says of it."""

import dataclasses
import hashlib
import json
import time
from typing import Any

from tl_jax import config, evaluation
from tl_jax.core import chain
from tl_jax.engine import Engine
from tl_jax.plan.resolve import count
from tl_jax.train import loop
from tl_jax.train.state import State

# How many training examples the closing table is computed from, beside all of validation and test.
_TRAIN_SAMPLE = 1000


def summary(
    exp: config.Experiment, engine: Engine, state: State, progress: loop.Progress, steps: int, best: int | None
) -> dict[str, Any]:
    """What `summary.json` says of a finished run; measures `state` on every split for it.

    Args:
      steps: that were done; best: the one that `state` is from, None if the last.
    """
    began = time.perf_counter()
    metric, _ = chosen_metric(engine)
    _, params = chain.split(engine.model)
    said = {
        "name": exp.name,
        "config_digest": _digest(exp),
        "seed": exp.seed,
        "steps": steps,
        "tested_step": best or steps,
        "seconds": round(progress.seconds, 3),
        "compile_seconds": round(progress.compile_seconds, 3),
        "waited": round(progress.waited / progress.stepping, 4) if progress.stepping else None,
        "trained_parameters": count(params, {path for each in engine.stretches for path in each.plan.trained}),
        "total_parameters": count(params, params),
        "metric": metric,
        "stopped": "early" if progress.stopped_early else "finished",
        "examples": {split: len(examples.records) for split, examples in engine.sets.items()},
        "train": {},
        "validation": {},
        "test": {},
        "intervals": {},
    }
    for split in ("train", "validation", "test"):
        examples = engine.sets.get(split)
        if examples is None:
            continue
        examples = evaluation.thinned(examples, _TRAIN_SAMPLE) if split == "train" else examples
        found = evaluation.measure(engine, state, examples, intervals=split != "train")
        said[split] = dict(found.metrics)
        if split != "train":
            said["intervals"][split] = {name: list(pair) for name, pair in found.intervals.items()}
        if split == "test":
            said["groups"], said["details"] = found.groups, found.details
    said["test_seconds"] = round(time.perf_counter() - began, 3)
    return json.loads(json.dumps(said))


def chosen_metric(engine: Engine) -> tuple[str, bool]:
    """Name of the metric that the best checkpoint is chosen by, and whether larger is better."""
    name = engine.exp.train.metric or engine.task.metric
    return name, name not in engine.task.smaller_is_better


def _digest(exp: config.Experiment) -> str:
    """Of the config without its seeds: runs that share it differ by chance alone."""
    data = dataclasses.replace(exp.data, split_seed=0)
    plain = config.to_dict(dataclasses.replace(exp, seed=0, data=data, profile=None))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
