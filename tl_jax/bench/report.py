# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The verb `bench`: measures, and says it as a table and as data.

found = report.bench(exp, report.Asked(synthetic=True, steps=20))
print(found.text)
json.dumps(found.figures)
"""

import contextlib
import dataclasses
from typing import Any

import jax

from tl_jax import config, reading
from tl_jax.bench import against, step
from tl_jax.core.errors import UserError
from tl_jax.costs import readable
from tl_jax.report.table import markdown


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
      steps: that are timed, after three that are not.
      synthetic: random arrays in place of the config's data.
      classes: of synthetic examples.
      against: `torch` to measure PyTorch beside it, without dropout on both sides; None for not.
      repeats: rounds of `steps` on either side, in turn.
      threads: cores that both sides may use, with `against`; see `against.limit_threads`, which is not called here.
    """

    steps: int = 20
    synthetic: bool = False
    classes: int = 2
    against: str | None = None
    repeats: int = 3
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """A text for a person, and its figures."""

    text: str
    figures: dict[str, Any]


def bench(exp: config.Experiment, asked: Asked) -> Found:
    """Build the run of a config and measure its step; nothing is written but to a temporary folder.

    Raises:
      UserError: all that building the run would refuse.
    """
    for name in ("steps", "repeats"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name}", f"is {getattr(asked, name)}, must be at least 1")
    if asked.against not in (None, "torch"):
        raise UserError("--against", f"is {asked.against!r}, must be torch")
    exp = against.without_dropout(exp) if asked.against else exp
    engine = step.bench_engine(exp, asked.classes if asked.synthetic else None)
    state, loaded = engine.init_with_receipt()
    batch = step.first_batch(engine)
    ours, compared = step.StepBench(engine, state, batch), None
    with contextlib.ExitStack() as stack:
        # Before the first step, which takes the arrays of this state.
        other = stack.enter_context(against.opened(engine, state, batch, asked.threads)) if asked.against else None
        figures = step.measure(ours, loaded, asked.steps, reads=not asked.synthetic)
        if other is not None:
            other.warm_up(step.WARMUP)
            compared = other.in_turn(ours, asked.steps, asked.repeats) | {"threads": asked.threads}
    found = {**dataclasses.asdict(figures), "data": _data(exp, asked), "steps": asked.steps, "jax": jax.__version__}
    text = _text(found) if compared is None else f"{_text(found)}\n\n{_beside(compared)}"
    return Found(text, {**found, "against": compared})


def _data(exp: config.Experiment, asked: Asked) -> str:
    if not asked.synthetic:
        return exp.data.source
    labels = f", {asked.classes} classes" if exp.task.name == "classification" else ""
    return f"synthetic (random arrays{labels}, nothing read)"


def _text(found: dict[str, Any]) -> str:
    """One row a figure; blank where it was not measured."""
    size = found["batch_size"]
    shape = f"{size}" if found["length"] is None else f"{size} × {found['length']}"
    parts = ", ".join(f"{name} {readable(value)}" for name, value in found["memory"].items() if value)
    rows = {
        "device": f"{found['devices']} × {found['device']}, {found['dtype']}, jax {found['jax']}",
        "data": found["data"],
        "batch": shape if found["tokens"] is None else f"{shape}, {found['tokens']} tokens without padding",
        "padding": "" if found["padding"] is None else f"{found['padding']:.1%} of the batch",
        "parameters that train": f"{found['trained_parameters']:,} of {found['total_parameters']:,}",
        "loss of the first step": f"{found['loss']:.6g}",
        "step": f"{_times(found['step_ms'])} ms, {found['steps']} steps",
        "examples": _each(found["examples_per_second"], "a second"),
        "tokens": _each(found["tokens_per_second"], "a second"),
        "compilation": f"{found['compile_seconds']:.2f} s",
        "FLOPs of a step": f"{found['flops'] / 1e9:.3f} GFLOP, compiled for this plan",
        "bytes accessed": readable(found["bytes_accessed"]),
        "peak by a product": _tera(found["peak_flops"]),
        "peak by the vendor": _tera(found["vendor_flops"]),
        "MFU of this plan": f"{found['mfu']:.1%} of the product's peak",
        "memory by the compiler": f"{readable(sum(found['memory'].values()))} a device ({parts})",
        "peak memory of the device": _bytes(found["device_peak_bytes"]),
        "peak memory of the process": _bytes(found["process_peak_bytes"]),
        "input alone": _each(found["input_examples_per_second"], "examples a second"),
        "input of one core": _core(found),
        "checkpoint": _bytes(found["checkpoint_bytes"]),
        "save holds the loop up": _held(found),
        "dispatch": f"{found['dispatch_ms']:.3f} ms, {found['trivial_dispatch_ms']:.3f} ms for as many scalars",
        "argument buffers": found["buffers"],
    }
    return markdown([{"figure": name, "value": value} for name, value in rows.items()], ("figure", "value"))


def _each(rate: float | None, unit: str) -> str:
    return "" if rate is None else f"{rate:,.1f} {unit}"


def _core(found: dict[str, Any]) -> str:
    if found["threads_needed"] is None:
        return ""
    missing = f", and there are {reading.cores()} cores" if found["threads_needed"] > reading.cores() else ""
    rate = _each(found["input_core_examples_per_second"], "examples a second")
    return f"{rate}: the step needs data.threads={found['threads_needed']}" + missing


def _tera(flops: float | None) -> str:
    return "" if flops is None else f"{flops / 1e12:.3f} TFLOP/s"


def _bytes(size: int | None) -> str:
    return "" if size is None else readable(size)


def _held(found: dict[str, Any]) -> str:
    if found["checkpoint_ms"] is None:
        return ""
    steps, written = found["checkpoint_steps"], found["checkpoint_written_ms"]
    return f"{found['checkpoint_ms']:.1f} ms ({steps:.1f} steps), {written:.1f} ms until it is on disk"


def _beside(found: dict[str, Any]) -> str:
    """The table of both sides, and what is to be known of it."""
    rows = [{"step of": "tl_jax", "ms": _times(found["ours_step_ms"]), "PyTorch / tl_jax": ""}]
    for mode in against.MODES:
        one = found[mode]
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f} [{one['ratios'][0]:.2f}, {one['ratios'][1]:.2f}]"
        rows.append({"step of": f"PyTorch, {mode}", "ms": _times(one["step_ms"]), "PyTorch / tl_jax": ratio})
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    threads = f", {found['threads']} threads each" if found["threads"] else ""
    other = f" ({found['loss']:.6g} in PyTorch): not the same work, so there is no ratio"
    lines = [
        markdown(rows, ("step of", "ms", "PyTorch / tl_jax")),
        "",
        f"In turn, {found['repeats']} rounds; ratios with the smallest and largest of a round. {versions}.",
        f"AdamW, no dropout{threads}.",
        f"Losses of the first step differ by {found['loss_difference']:.2e}{'' if found['agree'] else other}.",
        *(f"PyTorch, {mode}, failed: {reason}" for mode, reason in found["reasons"].items()),
    ]
    return "\n".join(lines)


def _times(times: dict[str, float] | None) -> str:
    return "" if times is None else f"{times['median']:.3f} [p10 {times['p10']:.3f}, p90 {times['p90']:.3f}]"
