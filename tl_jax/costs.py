# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run would do and cost, before anything runs: receipt, plan by stage, FLOPs, memory, the batch that fits.

    print(report(exp).text)

Nothing is read but headers, data and the small files; the step is compiled for abstract arguments.
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import caching, config, loading
from tl_jax.core import chain
from tl_jax.engine import Engine, build
from tl_jax.parallel import sharding
from tl_jax.plan.resolve import count
from tl_jax.report import plan as plan_report
from tl_jax.train.step import Step

# Of a step, whatever its portions.
_PARTS = ("schedule", "mix", "anchor", "ema", "teacher", "compiler_options")
_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclasses.dataclass(frozen=True)
class Figures:
    """The numbers of a report; memory in bytes on one device.

    Attributes:
      flops_per_step: of the compiled step, accumulation unrolled, over all devices.
      steps: updates, of the phase where there are several.
      memory: by part: frozen, what of it is quantised by its kind, trained, statistics, optimizer, ema, anchor and
        teacher (where kept), batch, temporaries (gradients and activations).
      memory_limit: what one device has.
      batch_size_that_fits: the largest, of multiples of the mesh, by a straight line through two compiled sizes.
    """

    total_parameters: int
    trained_parameters: int
    steps: int
    steps_per_epoch: int
    batch_size: int
    flops_per_step: float
    memory: dict[str, int]
    memory_limit: int
    batch_size_that_fits: int


@dataclasses.dataclass(frozen=True)
class Report:
    """A text for a person, and its figures; in a run of several phases those of the last, and those before it."""

    text: str
    figures: Figures
    earlier_phases: tuple[Figures, ...] = ()


def report(exp: config.Experiment) -> Report:
    """Compile the step of a config and describe it.

    Raises:
      UserError: all that building the run would refuse.
    """
    first = build(exp)
    engines = [first.phase(number) for number in range(len(first.stretches))]
    described = [_describe(engine) for engine in engines]
    checkpoint = loading.read_from(exp.model, first.checkpoint)
    weights = f"weights: {loading.foresee(checkpoint, first.model, exp.model.fresh)}"
    if len(engines) == 1:
        ((text, figures),) = described
        return Report(f"{weights}\n\n{text}", figures)
    titles = (f"phase {e.number + 1} of {len(engines)}, steps {e.start + 1} to {e.stop}" for e in engines)
    texts = (f"{title}\n\n{text}" for title, (text, _) in zip(titles, described))
    *earlier, last = (figures for _, figures in described)
    return Report("\n\n".join((weights, *texts)), last, tuple(earlier))


def _describe(engine: Engine) -> tuple[str, Figures]:
    """One phase."""
    exp = engine.exp
    _, params = chain.split(engine.model)
    compiled = compile_step(engine, exp.train.batch_size)
    memory = memory_by_part(engine, exp.train.batch_size, compiled)
    unit = exp.train.accumulate * engine.mesh.shape["data"] * engine.mesh.shape["fsdp"]
    other = exp.train.batch_size // 2 // unit * unit or exp.train.batch_size + unit
    temp = memory["temporaries"]
    other_temp = compile_step(engine, other).memory_analysis().temp_size_in_bytes
    slope = max((temp - other_temp) / (exp.train.batch_size - other), 1.0) + memory["batch"] / exp.train.batch_size
    limit = _limit(engine.mesh)
    left = limit - sum(memory.values())
    fits = max(0, int(exp.train.batch_size + left / slope)) // unit * unit
    plain = compiled if exp.train.accumulate == 1 else compile_step(engine, exp.train.batch_size, accumulate=1)
    figures = Figures(
        total_parameters=count(params, params),
        trained_parameters=count(params, engine.plan.trained),
        steps=engine.stop - engine.start,
        steps_per_epoch=engine.steps_per_epoch,
        batch_size=exp.train.batch_size,
        flops_per_step=float(plain.cost_analysis()["flops"]) * engine.mesh.size,
        memory=memory,
        memory_limit=limit,
        batch_size_that_fits=fits,
    )
    return _text(engine, params, figures), figures


def compile_step(engine: Engine, batch_size: int, accumulate: int | None = None):
    """The compiled step for a batch of this size, from abstract arguments."""
    step = engine.step
    if accumulate is not None:
        parts = {name: getattr(step, name) for name in _PARTS}
        step = Step(engine.step.objective, engine.tx, accumulate=accumulate, **parts)
    return step.core.lower(*_arguments(engine, batch_size)).compile()


def _arguments(engine: Engine, batch_size: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the step takes (moving, constant, batch), abstract, each leaf with its sharding."""
    _, params = chain.split(engine.model)
    places = sharding.param_shardings(params, engine.mesh, engine.checkpoint.family.SHARDING)
    by_path = {path: _on(jax.ShapeDtypeStruct(p.shape, p.dtype), places[path]) for path, p in params.items()}
    trained = {path: by_path[path] for path in engine.plan.trained}
    whole = sharding.replicated(engine.mesh)
    moving = {
        "step": _on(jax.ShapeDtypeStruct((), jnp.int32), whole),
        "trained": trained,
        "stats": {path: by_path[path] for path in engine.plan.moving},
        "opt_state": jax.tree.map(_on, jax.eval_shape(engine.tx.init, trained), engine.shardings()["opt_state"]),
    }
    if engine.step.ema:
        moving["ema"] = trained
    moves = {*engine.plan.trained, *engine.plan.moving}
    key = jax.eval_shape(lambda: jax.random.key(0))
    frozen = {p: leaf for p, leaf in by_path.items() if p not in moves}
    frozen = frozen if engine.quantized is None else engine.quantized.abstract(frozen)
    constant = {"frozen": frozen, "key": _on(key, whole)}
    anchor = engine.step.anchor
    constant["anchor"] = {} if anchor is None else {path: by_path[path] for path in anchor.loaded}
    constant["teacher"] = {} if engine.step.teacher is None else engine.teacher.shapes(engine.mesh)
    return moving, constant, engine.abstract_batch(batch_size)


def _on(leaf, place) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def memory_by_part(engine: Engine, batch_size: int, compiled) -> dict[str, int]:
    """Bytes on one device by part, what the program itself leaves unread among them."""
    moving, constant, batch = _arguments(engine, batch_size)

    def size(tree) -> int:
        leaves = jax.tree.leaves(tree)
        return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)

    few = {} if engine.quantized is None else {path: constant["frozen"][path] for path in engine.quantized.paths}
    return {
        "frozen": size(constant["frozen"]) - size(few),
        **({f"frozen in {engine.quantized.kind}": size(few)} if few else {}),
        "trained": size(moving["trained"]),
        "statistics": size(moving["stats"]),
        "optimizer": size(moving["opt_state"]),
        **({"ema": size(moving["ema"])} if "ema" in moving else {}),
        **{name: size(constant[name]) for name in ("anchor", "teacher") if constant[name]},
        "batch": size(batch),
        "temporaries": int(compiled.memory_analysis().temp_size_in_bytes),
    }


def _limit(mesh: jax.sharding.Mesh) -> int:
    """Bytes on one device; processes' devices on a CPU share the machine's memory."""
    device = mesh.local_devices[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)


def _text(engine: Engine, params: dict[str, Any], figures: Figures) -> str:
    parts = ", ".join(f"{name} {readable(size)}" for name, size in figures.memory.items())
    used = readable(sum(figures.memory.values()))
    share = figures.trained_parameters / figures.total_parameters
    return "\n".join(
        [
            plan_report.by_stage(engine.plan, engine.chains, params),
            "",
            f"parameters: {figures.trained_parameters:,} of {figures.total_parameters:,} train ({share:.1%})",
            f"steps: {figures.steps} of {figures.batch_size} examples, {figures.steps_per_epoch} an epoch",
            f"cost: {figures.flops_per_step / 1e9:.2f} GFLOP a step, compiled",
            f"cut: {_kept(engine)}",
            *([] if engine.quantized is None else [f"quantised: {engine.quantized}"]),
            f"memory on a device: {used} ({parts}) of {readable(figures.memory_limit)}",
            f"largest batch that fits: about {figures.batch_size_that_fits}",
        ]
    )


def _kept(engine: Engine) -> str:
    cache = caching.Cache(engine)
    reason = cache.why_not()
    if reason is not None:
        return f"computed in every step, as {reason}"
    return f"what crosses it is computed once and kept, {readable(cache.nbytes)} in the host's memory"


def readable(size: float) -> str:
    """Bytes as a person reads them: 1.2 MB is 1.2e6 bytes."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
