# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A step beside the same step in PyTorch: the same weights, batch, plan, precision and threads, in turn.

    with against.opened(engine, state, batch, threads=2) as torch:
        ours.run(3), torch.warm_up(3)
        found = torch.in_turn(ours, steps=20, repeats=3)

The network is written as it is published, and PyTorch reads that: same weights also where they are random. Dropout is
off on both sides, and the losses of the first step must agree, or no ratio is given. PyTorch runs in a process of its
own, `against_torch`, which waits while steps are measured here.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from tl_jax import config
from tl_jax.adapting import save_adapter
from tl_jax.bench.step import StepBench, spread
from tl_jax.core import chain
from tl_jax.core.errors import UserError, shorten
from tl_jax.engine import Engine
from tl_jax.plan import adapters
from tl_jax.plan.resolve import count
from tl_jax.pretrained import load_pretrained
from tl_jax.train.state import State
from tl_jax.weights.peft import Names

_TASKS = ("classification", "language_model")
# Adam's options as PyTorch calls them; b1 and b2 are one there.
_OPTIONS = ("b1", "b2", "eps")
# Of the loss of the first step. float32: sums in another order through all blocks. bfloat16 keeps 8 bits, and autocast
# chooses for itself which products it rounds.
_AGREE = {"float32": 1e-3, "bfloat16": 2e-2}
MODES = ("eager", "compiled")


def limit_threads(threads: int) -> None:
    """Keep this process, and those that it starts, to so many cores; before JAX starts its own threads.

    Raises:
      UserError: more than there are, or a system that has no way to say it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--threads", "needs Linux", "leave it out")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise UserError("--threads", f"is {threads}, must be from 1 to {len(cores)}")
    os.sched_setaffinity(0, cores[:threads])


def without_dropout(exp: config.Experiment) -> config.Experiment:
    """The config with what both sides can do alike.

    Raises:
      UserError: everything in it that has no counterpart in `against_torch`, at once.
    """
    train, options = exp.train, set(exp.optimizer.options)
    wrong = {
        f"task.name={exp.task.name}": exp.task.name not in _TASKS,
        f"optimizer.name={exp.optimizer.name}": exp.optimizer.name != "adamw",
        f"optimizer.options {', '.join(sorted(options))}": not options <= set(_OPTIONS),
        f"train.accumulate={train.accumulate}": train.accumulate > 1,
        "train.mixup or train.cutmix": bool(train.mixup or train.cutmix),
        "train.l2_sp": bool(train.l2_sp),
        "train.ema": bool(train.ema),
        "distill.teacher": exp.distill.teacher is not None,
        "plan.quantize": exp.plan.quantize is not None,
        "data.packing": exp.data.packing,
    }
    found = [name for name, there in wrong.items() if there]
    if jax.default_backend() not in ("cpu", "gpu") or jax.process_count() > 1 or len(jax.devices()) > 1:
        found.append("other devices than one CPU or one GPU")
    if found:
        raise UserError("--against=torch", f"has no counterpart of {'; '.join(found)}", "leave it out")
    return dataclasses.replace(exp, plan=dataclasses.replace(exp.plan, dropout="none"))


@contextlib.contextmanager
def opened(engine: Engine, state: State, batch: Mapping[str, jax.Array], threads: int | None) -> Iterator["Torch"]:
    """PyTorch with the network of this state, from a temporary folder, until the block ends.

    Raises:
      UserError: a network or plan without counterpart, or whatever PyTorch says.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = publish(engine, state, batch, pathlib.Path(folder)) | {"threads": threads}
        with open(pathlib.Path(folder) / "stderr", "w+") as told:
            process = subprocess.Popen(
                [sys.executable, "-m", "tl_jax.bench.against_torch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=told,
                text=True,
            )
            try:
                yield Torch(process, told, request, engine)
            finally:
                process.kill()
                process.communicate()


class Torch:
    """The other side; see `against_torch` for what it is asked."""

    def __init__(self, process: subprocess.Popen, told, request: dict[str, Any], engine: Engine):
        self._process, self._told, self._engine = process, told, engine
        self.reasons: dict[str, str] = {}
        self.loss: float | None = None
        ready = self._ask(request)
        if "failed" in ready:
            raise UserError("--against=torch", f"PyTorch could not take the network ({ready['failed']})")
        self.versions: dict[str, str] = ready["versions"]
        _, params = chain.split(engine.model)
        ours = count(params, engine.plan.trained)
        if ready["ready"] != ours:
            raise UserError(
                "--against=torch", f"{ready['ready']:,} numbers train in PyTorch, {ours:,} here", "choose another plan"
            )

    def warm_up(self, steps: int) -> None:
        """Run the first steps of every mode, and compile; what fails is left out and its reason kept."""
        for mode in MODES:
            found = self._ask({"mode": mode, "steps": steps})
            if "failed" in found:
                self.reasons[mode] = found["failed"]
            elif self.loss is None:
                self.loss = found["loss"]
        if "eager" in self.reasons:
            raise UserError("--against=torch", f"PyTorch's step failed ({self.reasons['eager']})")

    def in_turn(self, ours: StepBench, steps: int, repeats: int) -> dict[str, Any]:
        """Both sides, one after the other, `repeats` times.

        Returns:
          `loss_difference` of the first steps and whether they `agree`; by mode `step_ms` (median, p10, p90 over all
          steps), `ratio` of PyTorch's median to ours and `ratios`, the smallest and largest of single rounds, all None
          where a mode failed, and the ratios where the losses do not agree; `ours_step_ms`; `reasons`; `versions`.
        """
        modes = [mode for mode in MODES if mode not in self.reasons]
        seconds: dict[str, list[list[float]]] = {mode: [] for mode in ("ours", *modes)}
        for _ in range(repeats):
            seconds["ours"].append(ours.run(steps)[0])
            for mode in modes:
                seconds[mode].append(self._seconds(mode, steps))
        agree = self.agrees(ours.loss)
        return {
            "loss": self.loss,
            "loss_difference": abs(ours.loss - self.loss),
            "agree": agree,
            "ours_step_ms": spread(sum(seconds["ours"], [])),
            **{mode: compared(seconds["ours"], seconds.get(mode), agree) for mode in MODES},
            "reasons": self.reasons,
            "versions": self.versions,
            "repeats": repeats,
        }

    def agrees(self, loss: float) -> bool:
        """Whether our loss of the first step is PyTorch's, but for rounding."""
        return abs(loss - self.loss) <= _AGREE[self._engine.exp.model.dtype] * max(1.0, abs(self.loss))

    def run_all(self, steps: int) -> tuple[str, float]:
        """The faster mode by three steps each, and the seconds of so many of its steps."""
        modes = [mode for mode in MODES if mode not in self.reasons]
        mode = min(modes, key=lambda mode: statistics.median(self._seconds(mode, 3)))
        return mode, sum(self._seconds(mode, steps))

    def _seconds(self, mode: str, steps: int) -> list[float]:
        found = self._ask({"mode": mode, "steps": steps})
        if "failed" in found:
            raise UserError("--against=torch", f"PyTorch's step failed ({found['failed']})")
        return found["seconds"]

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(line), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._told.seek(0)
            last = (self._told.read().strip().splitlines() or ["without a word"])[-1]
            raise UserError("--against=torch", f"PyTorch's process ended ({last})")
        return json.loads(answer)


def compared(ours: list[list[float]], theirs: list[list[float]] | None, agree: bool) -> dict[str, Any]:
    """One mode of PyTorch against us: above 1 means that we are faster.

    Args:
      ours, theirs: seconds of the steps of every round; None where this mode failed.
    """
    if theirs is None:
        return {"step_ms": None, "ratio": None, "ratios": None}
    rounds = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(sum(theirs, [])) / statistics.median(sum(ours, []))
    return {
        "step_ms": spread(sum(theirs, [])),
        "ratio": ratio if agree else None,
        "ratios": [min(rounds), max(rounds)] if agree else None,
    }


def publish(engine: Engine, state: State, batch: Mapping[str, jax.Array], folder: pathlib.Path) -> dict[str, Any]:
    """Write network, adapters and batch into an empty folder, and say what `against_torch.Bench` is to do with them.

    Raises:
      UserError: a head that transformers has no class for, a plan that trains a part of a tensor.
    """
    pretrained = engine.to_pretrained(state)
    pretrained.merge().save(folder / "network")
    adapter = None
    if adapters.installed(pretrained.model):
        adapter = str(folder / "adapter")
        # What is as in these files is left out of the adapter's, so that the head, which trains, must not be the same.
        base = load_pretrained(folder / "network")
        frozen = {path: leaf for path, leaf in base.params.items() if path not in engine.plan.trained}
        chain.merge_into(pretrained.model, {**pretrained.params, **frozen})
        save_adapter(base.around(pretrained.model), adapter)
    published = json.loads((folder / "network" / "config.json").read_text())
    timm = "architecture" in published
    heads = pretrained.heads()
    if not timm and not heads:
        raise UserError("task.options", "transformers has no class with this head", "leave out pool and bias")
    names = Names(*pretrained.layout())
    trained = None if adapter is not None else _names_of(names, engine.plan.trained)
    wanted = {name: np.asarray(batch[name]) for name in (*engine.checkpoint.family.INPUTS, "label") if name in batch}
    np.savez(folder / "batch.npz", **wanted)
    opt, given = engine.exp.optimizer, engine.exp.optimizer.options
    return {
        "folder": str(folder / "network"),
        "adapter": adapter,
        "library": "timm" if timm else "transformers",
        "architecture": published["architecture"] if timm else heads[0],
        "batch": str(folder / "batch.npz"),
        "task": engine.exp.task.name,
        "multi_label": bool(getattr(engine.task.config, "multi_label", False)),
        "trained": trained,
        "statistics": sorted({name.rpartition(".")[0] for name in _names_of(names, engine.plan.moving)}),
        "dtype": engine.exp.model.dtype,
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
        "learning_rate": opt.learning_rate,
        "weight_decay": opt.weight_decay,
        "options": {"betas": [given.get("b1", 0.9), given.get("b2", 0.999)], "eps": given.get("eps", 1e-8)},
        "clip_norm": opt.clip_norm,
    }


def _names_of(names: Names, paths) -> list[str]:
    """What transformers calls these parameters.

    Raises:
      UserError: a tensor of which only a part trains.
    """
    paths, found, parts = set(paths), [], []
    for rule in names.rules:
        ours = paths.intersection(rule.params)
        if ours and len(ours) < len(rule.params):
            parts += sorted(ours)
        elif ours:
            found += [names.of(tensor) for tensor in rule.tensors]
    if parts:
        raise UserError("plan", f"trains a part of what is one tensor in PyTorch ({shorten(parts)})", "train it whole")
    return list(dict.fromkeys(found))
