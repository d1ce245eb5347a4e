# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One config in several variants, sizes of data and seeds: what each reaches and what it costs, as a table.

    python -m tl_jax.bench.variants --of=methods --config=minilm_sst2 --config.data.path=path/to/sst2 \\
        --labels=20,100,all --steps=60,120,217 --seeds=0,1,2 --workdir=runs/methods

Every run is a process of its own in a folder of its own, as `launch.py` would start it: its peak memory is its own, and
what was finished is not run again. `--of` is `methods`, `remedies`, `quantized`, or a JSON file of overrides, {name:
{field: value}}; `--only=head,lora` takes some of them. The table goes to stdout and, with the figures of every run, to
`results.json`.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tl_jax import config
from tl_jax.bench import words
from tl_jax.core import folder as folders
from tl_jax.core.errors import UserError, did_you_mean
from tl_jax.report.table import markdown

_EVERY_KERNEL = r"(.*/)?blocks/\d+/.*kernel"
# Rates are multiples of the config's, which is that of training everything: what trains little takes ten times as much
# (as in Houlsby et al. 2019, Hu et al. 2021, Ben Zaken et al. 2022). None is tuned.
METHODS: dict[str, dict[str, Any]] = {
    "head": {"plan.preset": "linear_probe", "optimizer.learning_rate": 10.0, "optimizer.weight_decay": 0.0},
    "bias": {"plan.preset": "bias_only", "optimizer.learning_rate": 10.0},
    "lora": {
        "plan.preset": None,
        "plan.adapters": ((_EVERY_KERNEL, {"kind": "lora", "rank": 8}),),
        "optimizer.learning_rate": 10.0,
    },
    "last two": {"plan.preset": "last_n", "plan.n": 2, "optimizer.learning_rate": 3.0},
    "full": {"plan.preset": "full"},
    "lp_ft": {"plan.preset": "full", "recipe.name": "lp_ft", "recipe.lr": 10.0},
}
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "inverse weights": {"task.options.class_weights": "inverse"},
    "effective numbers": {"task.options.class_weights": "effective"},
    "logit adjustment": {"task.options.logit_adjustment": 1.0},
    "balanced sampler": {"data.sampler": "balanced"},
    "focal": {"task.options.loss": "focal"},
    "gce": {"task.options.loss": "gce"},
    "label smoothing": {"task.options.label_smoothing": 0.1},
    "mixup": {"train.mixup": 0.2},
    "CutMix": {"train.cutmix": 1.0},
}
QUANTIZED: dict[str, dict[str, Any]] = {
    "lora": METHODS["lora"],
    "lora on int8": {**METHODS["lora"], "plan.quantize": "int8"},
    "lora on nf4": {**METHODS["lora"], "plan.quantize": "nf4"},
}
_SETS = {"methods": METHODS, "remedies": REMEDIES, "quantized": QUANTIZED}


def variant(exp: config.Experiment, overrides: Mapping[str, Any], labels: int | None, steps: int, seed: int):
    """The experiment of one run; its length is the same for all variants, phases before the last included.

    Args:
      overrides: as `baseline` takes them, but for `optimizer.learning_rate`, a multiple of the config's.
      labels: training examples of each class; None for all there are.
      steps: of the whole run.
    """
    rate = exp.optimizer.learning_rate * overrides.get("optimizer.learning_rate", 1.0)
    fixed = {"data.per_class": labels, "seed": seed, "data.split_seed": seed, "optimizer.learning_rate": rate}
    exp = config.override(dataclasses.replace(exp, baseline={}), {**overrides, **fixed})
    if exp.recipe.name is not None:
        # A third of the steps for the phase before.
        first = config.Phase(config.Plan("linear_probe"), steps=steps // 3)
        rates = {"learning_rate": rate * exp.recipe.lr}
        exp = dataclasses.replace(exp, recipe=config.Recipe(), phases=(dataclasses.replace(first, optimizer=rates),))
        steps -= steps // 3
    # Half-way and at the end: looking costs small runs more than learning.
    length = {"steps": steps, "epochs": None, "eval_every": -(-steps // 2)}
    return dataclasses.replace(exp, train=dataclasses.replace(exp.train, **length))


def measure(exp: config.Experiment, workdir: pathlib.Path) -> dict[str, Any]:
    """The summary of this run, made in a process of its own unless it is there, with what the process took.

    `cpu_seconds` are those of all cores over the whole process, so that a busy machine changes them little;
    `peak_bytes` is its largest resident memory, `checkpoint_bytes` the size of the last checkpoint.

    Raises:
      UserError: the folder holds a run of another config, or the run failed.
    """
    run, costs, asked = workdir / "run", workdir / "process.json", workdir / "asked.json"
    wanted = json.dumps(config.to_dict(exp))
    if asked.exists() and asked.read_text() != wanted:
        raise UserError(str(workdir), "holds a run of another config", "give another --workdir")
    if not costs.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        asked.write_text(wanted)
        words = [f"--config={asked}", f"--workdir={run}", "--quiet"]
        start = "import sys; from tl_jax.cli import main; main(['launch.py', *sys.argv[1:]])"
        process = subprocess.Popen([sys.executable, "-c", start, *words], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        # `wait4` is not the module's own, which would go on waiting.
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise UserError(str(workdir), f"its run ended with {process.returncode}", "see above")
        kept = max((run / "checkpoints").glob("*.json"), key=lambda path: int(path.stem)).with_suffix("")
        size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
        cost = {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * 1024,
            "checkpoint_bytes": size,
        }
        folders.write_json(costs, cost)
    return {**folders.read_json(run / "summary.json"), **folders.read_json(costs)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each variant and number of labels, mean ± sample standard deviation over the seeds.

    Args:
      rows: {"variant", "labels", **what `measure` returns} of every run.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["labels"], row["variant"]), []).append(row)
    lines = []
    for (labels, name), runs in groups.items():
        metrics = [metric for metric in runs[0]["test"] if metric != "loss"]
        line = {"labels a class": labels, "variant": name, "seeds": len(runs)}
        line |= {metric: _spread([run["test"][metric] for run in runs]) for metric in metrics}
        recalls = [run["details"].get("recall_by_class") for run in runs]
        if all(recalls):
            line["recall by class"] = ", ".join(f"{_mean([each[c] for each in recalls]):.3f}" for c in recalls[0])
        lines.append(
            line
            | {
                "trained": f"{runs[0]['trained_parameters']:,}",
                "seconds": f"{_mean([run['seconds'] for run in runs]):.0f}",
                "CPU seconds": f"{_mean([run['cpu_seconds'] for run in runs]):.0f}",
                "peak memory": f"{max(run['peak_bytes'] for run in runs) / 1e6:.0f} MB",
                "checkpoint": f"{_mean([run['checkpoint_bytes'] for run in runs]) / 1e6:.2f} MB",
            }
        )
    return markdown(lines, list(dict.fromkeys(column for line in lines for column in line)))


def _spread(values: Sequence[float]) -> str:
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{_mean(values):.3f}{sd}"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def main(argv: Sequence[str]) -> None:
    """Run everything that is asked for and print the table."""
    usual = {"labels": "all", "seeds": "0", "of": "methods", "workdir": "runs/variants", "only": "", "steps": None}
    exp, given = words.read(argv, usual)
    chosen = _SETS[given["of"]] if given["of"] in _SETS else json.loads(pathlib.Path(given["of"]).read_text())
    only = [name for name in given["only"].split(",") if name] or list(chosen)
    for name in only:
        if name not in chosen:
            raise UserError("--only", f"{name!r} is no variant{did_you_mean(name, chosen)}")
    sizes = [None if text == "all" else int(text) for text in given["labels"].split(",")]
    lengths = [int(text) for text in given["steps"].split(",")]
    if len(lengths) != len(sizes):
        raise UserError("--steps", f"has {len(lengths)} numbers, --labels has {len(sizes)}", "give one for each")
    home, rows = pathlib.Path(given["workdir"]), []
    for seed in map(int, given["seeds"].split(",")):
        for labels, steps in zip(sizes, lengths):
            for name in only:
                size = "all" if labels is None else str(labels)
                one = variant(exp, chosen[name], labels, steps, seed)
                found = measure(one, home / size / name.replace(" ", "_") / str(seed))
                rows.append({"variant": name, "labels": size, **found})
                print(f"{size} {name} seed {seed}: {found['test']}", file=sys.stderr, flush=True)
    (home / "results.json").write_text(json.dumps({"command": list(argv), "runs": rows}, indent=1))
    print(table(sorted(rows, key=lambda row: (list(map(str, sizes)) + ["all"]).index(row["labels"]))))


if __name__ == "__main__":
    words.run(main)
