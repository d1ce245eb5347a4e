# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A finished run put to use: evaluated, asked for predictions, converted.

evaluate_run("runs/x")["metrics"]["accuracy"]
predict_file("runs/x", "new_texts.txt", "predictions.csv")
"""

import csv
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from etils import epath

from tl_jax import calibration, config, evaluation, stablehlo
from tl_jax.adapting import save_adapter
from tl_jax.core import folder as folders
from tl_jax.core import plugins
from tl_jax.core.errors import UserError
from tl_jax.data.examples import Examples, joined
from tl_jax.engine import Engine
from tl_jax.inputs import kind_of
from tl_jax.plan import adapters
from tl_jax.pretrained import load_pretrained
from tl_jax.runs import load_run, open_run
from tl_jax.weights.from_torch import convert_in_subprocess


def evaluate_run(workdir: str, path: str | None = None) -> dict[str, Any]:
    """Metrics with 95 % intervals, by group where the data names one, and details.

    Args:
      workdir: of a run.
      path: labelled data in the form that the run was trained on (all of it is used); None for the run's test split.

    Raises:
      UserError: no run there, no test split, or data that does not fit.
    """
    engine, state = open_run(workdir, with_data=path is None)
    if path is None:
        examples = engine.sets.get("test")
        if examples is None:
            raise UserError(str(workdir), "has no test split", "give labelled data by --input")
    else:
        examples = engine.task.windows(_labelled(engine, path), engine.transform)
    found = evaluation.measure(engine, state, examples, intervals=True)
    return {"examples": len(examples.records), **dataclasses.asdict(found)}


def predict_file(workdir: str, path: str, output: str) -> int:
    """Write one CSV row an example: its key and what the task predicts, such as the class and the chance of each
    (at the run's temperature, where it was calibrated).

    Args:
      path: a folder of images or sounds, one of them, a table, questions in the JSON of SQuAD, or a `.txt` file with
        one text a line.
      output: the CSV file; must not exist.

    Returns:
      How many rows.
    """
    target = pathlib.Path(output)
    if target.exists():
        raise UserError(output, "exists", "give a new file")
    engine, state = open_run(workdir)
    examples = engine.task.windows(_unlabelled(engine, path), engine.transform)
    outputs = evaluation.outputs(engine, state, examples)
    temperature = calibration.saved_temperature(workdir)
    if temperature is not None:
        outputs = {**outputs, "logits": outputs["logits"] / temperature}
    rows = engine.task.predictions(outputs)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    with open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["key", *rows[0]])
        writer.writeheader()
        writer.writerows({"key": key, **row} for key, row in zip(examples.records.keys, rows))
    temporary.replace(target)
    return len(rows)


def convert(source: str, target: str) -> str:
    """Read published weights and write them again; every tensor is accounted for on the way."""
    pretrained = load_pretrained(source)
    pretrained.save(target)
    return f"{pretrained.receipt}\nwritten to {target}"


def export(workdir: str, target: str, form: Literal["hf", "peft", "stablehlo"] = "hf") -> str:
    """Write a run's adapted network with a model card of the run's facts: as `transformers` reads it, adapters folded
    into their kernels, or its adapters and head as PEFT reads them; or the network alone as a program, see `stablehlo`.

    Returns:
      What to load it with, and whether adapters were folded in.

    Raises:
      UserError: no run there, a folder that is not empty, a head that no class of `transformers` has, or adapters that
        the form has no place for.
    """
    summary = folders.read_json(epath.Path(workdir) / "summary.json")
    if summary is None:
        raise UserError(str(workdir), "holds no finished run", "let it finish first")
    if form == "stablehlo":
        return stablehlo.write(workdir, target)
    pretrained = load_run(workdir)
    heads = pretrained.heads()
    if not heads:
        ours = pretrained.config["tl_jax"]
        options = ", ".join(f"{name}={value}" for name, value in ours["options"].items())
        raise UserError(
            "export",
            f"no class of transformers has the head {ours['task']} with {options}",
            "train with another task.options.pool, or keep to load_run, which reads every run",
        )
    if form == "peft":
        save_adapter(pretrained, target)
        base = f"transformers.{heads[0]}.from_pretrained({pretrained.receipt.source!r}, …)"
        how = f"peft.PeftModel.from_pretrained({base}, {target!r})"
    else:
        pretrained.merge().save(target)
        how = f"transformers.{heads[0]}.from_pretrained({target!r})"
        how += ", the adapters folded into its kernels" * bool(adapters.installed(pretrained.model))
    (pathlib.Path(target) / "README.md").write_text(_card(pretrained, summary))
    return how


def _card(pretrained, summary: Mapping[str, Any]) -> str:
    """The model card: where it comes from, what was trained on how much, and how well it does."""
    rows = [
        f"| {name} | {value:.4f} | {low:.4f} to {high:.4f} |"
        for name, value in summary["test"].items()
        for low, high in [summary["intervals"]["test"][name]]
    ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"base_model: {pathlib.Path(pretrained.receipt.source).name}",
            "---",
            f"# {summary['name']}",
            "",
            f"Adapted with tl_jax from `{pathlib.Path(pretrained.receipt.source).name}` (sha256 of its weights "
            f"{pretrained.receipt.digest}).",
            "",
            f"- {summary['trained_parameters']:,} of {summary['total_parameters']:,} parameters trained, "
            f"{summary['steps']} steps, seed {summary['seed']}",
            f"- examples: {', '.join(f'{split} {count}' for split, count in summary['examples'].items())}",
            f"- classes: {', '.join(pretrained.classes)}",
            "",
            "| test | value | 95 % interval |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def convert_torch(file: str, target: str) -> str:
    """A PyTorch file of tensors as `model.safetensors`, with the small files beside it."""
    count = convert_in_subprocess(pathlib.Path(file), pathlib.Path(target))
    return f"{count} tensors of {file} written to {target}"


def _labelled(engine: Engine, path: str) -> Examples:
    """All examples at `path`, whatever splits it has, with the run's classes."""
    data = engine.exp.data
    source = _source_for(path, data.source)
    options = config.parse_options(source.Config, _options(engine, source), "data.options")
    whole = joined(list(source.read(dataclasses.replace(data, path=path), options).values()))
    whole = evaluation.with_classes(whole, engine.task.classes, path)
    engine.task.check_labels(whole.labels, whole.keys, path)
    return whole


def _unlabelled(engine: Engine, path: str) -> Examples:
    source = _source_for(path, engine.exp.data.source)
    options = config.parse_options(source.Config, _options(engine, source), "data.options")
    if not hasattr(source, "read_unlabelled"):
        raise UserError(path, "holds labelled data", "evaluate on it, or give files without labels")
    examples = source.read_unlabelled(path, options)
    wants = kind_of(engine.checkpoint)
    if examples.kind != wants:
        raise UserError(path, f"holds {examples.kind}s, the run was trained on {wants}s")
    return examples


def _source_for(path: str, trained_on: str):
    """The run's own source where it reads such files, else the first that does: a run on docstrings still predicts from
    a text file."""
    where = pathlib.Path(path)
    if not where.exists():
        raise UserError(path, "no such file or folder")
    # A table is one of texts or images unless the run read it otherwise.
    for name in dict.fromkeys((trained_on, "table", *plugins.names("tl_jax.data.sources"))):
        source = plugins.find("tl_jax.data.sources", name)
        if hasattr(source, "reads") and source.reads(where):
            return source
    raise UserError(path, "is of no form that is read here", "give a table, a folder, an image, a sound or a .npz file")


def _options(engine: Engine, source) -> dict[str, Any]:
    """The run's options, as far as this source has them: a run on docstrings still predicts from a text file."""
    known = {field.name for field in dataclasses.fields(source.Config)}
    return {name: value for name, value in engine.exp.data.options.items() if name in known}
