# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run would do and cost, before anything runs: receipt, plan by stage, FLOPs, memory, the batch that fits.

    print(report(exp).text)

Nothing is read but headers, data and the small files; the step is compiled for abstract arguments.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import caching, config, fitting, loading, remat
from tl_jax.core import chain, target
from tl_jax.core.errors import UserError
from tl_jax.engine import Engine, build
from tl_jax.parallel import collectives, sharding
from tl_jax.parallel import mesh as meshes
from tl_jax.parallel.topologies import Pod
from tl_jax.plan.resolve import count
from tl_jax.report import plan as plan_report

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclasses.dataclass(frozen=True)
class Figures:
    """The numbers of a report; memory in bytes on one device.

    Attributes:
      flops_per_step: of the compiled step without loops, over all devices.
      steps: updates, of the phase where there are several.
      memory: by part: frozen, what of it is kept in fewer bits by their kind, trained, statistics, optimizer, ema,
        anchor and teacher (where kept), batch, temporaries (gradients and activations), and program: what it returns
        beside the state, and its code. The sum is the peak.
      memory_limit: what one device has.
      batch_size_that_fits: the largest, of multiples of the mesh, as compiled.
      batch_size_too_large: the next that was compiled, see `fitting`.
      memory_that_fits: the peak of the largest that fits.
      collectives: by kind, of the compiled step.
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
    batch_size_too_large: int
    memory_that_fits: int
    collectives: dict[str, collectives.Traffic]


@dataclasses.dataclass(frozen=True)
class Report:
    """A text for a person, and its figures; in a run of several phases those of the last, and those before it."""

    text: str
    figures: Figures
    earlier_phases: tuple[Figures, ...] = ()


def report(exp: config.Experiment, pod: Pod | None = None) -> Report:
    """Compile the step of a config and describe it.

    Args:
      pod: the devices to compile for, over those that are here.

    Raises:
      UserError: all that building the run would refuse, or a step that a TPU has too little memory for.
    """
    if pod is None:
        return _report(exp, None, None, "")
    devices, simulated = pod.devices()
    mesh, where = meshes.build(exp.mesh, devices), f"{_compiled_for(pod, simulated)}\n\n"
    with target.traced_for(devices[0].platform):
        return _report(exp, mesh, pod.kind.memory, where)


def _report(exp: config.Experiment, mesh: jax.sharding.Mesh | None, limit: int | None, where: str) -> Report:
    first = build(exp, mesh)
    first, told = remat.settled(first, peak, meshes.memory_limit(first.mesh) if limit is None else limit)
    engines = [first.phase(number) for number in range(len(first.stretches))]
    try:
        described = [_describe(engine, limit) for engine in engines]
    except jax.errors.JaxRuntimeError as error:
        # Compilers for TPUs place every array, and refuse what they find no place for.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = f"is too large for a device ({' '.join(str(error).split())[:300]})"
        raise UserError("train.batch_size", what, "lower it, or raise mesh.fsdp or train.accumulate") from error
    checkpoint = loading.read_from(exp.model, first.checkpoint)
    weights = f"{where}weights: {loading.foresee(checkpoint, first.model, exp.model.fresh)}"
    weights += f"\n\n{told}" if told else ""
    if len(engines) == 1:
        ((text, figures),) = described
        return Report(f"{weights}\n\n{text}", figures)
    titles = (f"phase {e.number + 1} of {len(engines)}, steps {e.start + 1} to {e.stop}" for e in engines)
    texts = (f"{title}\n\n{text}" for title, (text, _) in zip(titles, described))
    *earlier, last = (figures for _, figures in described)
    return Report("\n\n".join((weights, *texts)), last, tuple(earlier))


def _describe(engine: Engine, limit: int | None) -> tuple[str, Figures]:
    """One phase, on devices of so much memory."""
    exp, size = engine.exp, engine.exp.train.batch_size
    _, params = chain.split(engine.model)
    compiled = compile_step(engine, size)
    memory = memory_by_part(engine, size, compiled)

    def peak_of(other: int) -> float:
        return sum(memory.values()) if other == size else compiled_peak(engine, other)

    unit = exp.train.accumulate * engine.mesh.shape["data"] * engine.mesh.shape["fsdp"]
    limit = meshes.memory(engine.mesh) if limit is None else limit
    fit = fitting.largest(peak_of, unit, size, limit)
    plain = without_loops(engine)
    unrolled = compiled if plain is None else compile_step(plain, size)
    figures = Figures(
        total_parameters=count(params, params),
        trained_parameters=count(params, engine.plan.trained),
        steps=engine.stop - engine.start,
        steps_per_epoch=engine.steps_per_epoch,
        batch_size=size,
        flops_per_step=float(unrolled.cost_analysis()["flops"]) * engine.mesh.size,
        memory=memory,
        memory_limit=limit,
        batch_size_that_fits=fit.size,
        batch_size_too_large=fit.next,
        memory_that_fits=int(fit.peaks.get(fit.size, 0)),
        collectives=collectives.counted(compiled.as_text()),
    )
    return _text(engine, params, figures), figures


def compile_step(engine: Engine, batch_size: int):
    """The compiled step for a batch of this size, from abstract arguments."""
    return engine.step.core.lower(*_arguments(engine, batch_size)).compile()


def compiled_peak(engine: Engine, batch_size: int) -> float:
    """Bytes that a step of this size takes on a device; infinity where the compiler finds no room for it."""
    try:
        return sum(memory_by_part(engine, batch_size, compile_step(engine, batch_size)).values())
    except jax.errors.JaxRuntimeError as error:
        # Compilers for TPUs place every array, and refuse what they find no place for.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def peak(engine: Engine, enough: float) -> float:
    """Bytes that the run's own step takes on a device. Nothing is compiled where it surely takes less than half of what
    is enough: the bound is then the answer."""
    size = engine.exp.train.batch_size
    bound = at_most(engine, size)
    # Half, as compilers also pad arrays and need room of their own to compute in.
    return bound if bound <= enough / 2 else compiled_peak(engine, size)


def at_most(engine: Engine, batch_size: int) -> float:
    """Bytes that a step would take if it kept all that it ever computes, on one device: from its trace alone."""
    arguments = _arguments(engine, batch_size)
    return _size(arguments) + _computed(engine.step.core.trace(*arguments).jaxpr)


def _computed(jaxpr) -> int:
    """Bytes of the results of all operations, and of those within them; a loop's body counts once."""
    total = 0
    for equation in jaxpr.eqns:
        total += sum(x.aval.size * x.aval.dtype.itemsize for x in equation.outvars)
        total += sum(
            _computed(part) for part in jax.tree.leaves(list(equation.params.values())) if hasattr(part, "eqns")
        )
    return total


def without_loops(engine: Engine) -> Engine | None:
    """The same updates by another program: no portions, no stacks of blocks, a loss of all scores at once. None where
    the engine has no loop. What a compiler says of a program counts the body of a loop once."""
    train = dataclasses.replace(engine.exp.train, accumulate=1, scan="off")
    chains, _ = chain.split(loading.abstract(engine.checkpoint, engine.add_head))
    if chains == engine.chains and train.accumulate == engine.exp.train.accumulate:
        return None
    exp = dataclasses.replace(engine.exp, train=train)
    return dataclasses.replace(engine, exp=exp, chains=chains).phase(engine.number)


def _arguments(engine: Engine, batch_size: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the step takes (moving, constant, batch), abstract, each leaf with its sharding."""
    by_path, stacks = engine.abstract_params, engine.stacks
    trained = {path: by_path[path] for path in stacks.paths(engine.plan.trained)}
    stats = {path: by_path[path] for path in stacks.paths(engine.plan.moving)}
    whole = sharding.replicated(engine.mesh)
    moving = {
        "step": _on(jax.ShapeDtypeStruct((), jnp.int32), whole),
        "trained": trained,
        "stats": stats,
        "opt_state": jax.tree.map(_on, jax.eval_shape(engine.tx.init, trained), engine.shardings()["opt_state"]),
    }
    if engine.step.ema:
        moving["ema"] = trained
    key = jax.eval_shape(lambda: jax.random.key(0))
    frozen = {path: leaf for path, leaf in by_path.items() if path not in trained and path not in stats}
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
    found = compiled.memory_analysis()

    forms = {} if engine.quantized is None else engine.quantized.forms
    few = {
        f"frozen in {form}": _size([constant["frozen"][path] for path in engine.stacks.paths(paths)])
        for form, paths in forms.items()
    }
    return {
        "frozen": _size(constant["frozen"]) - sum(few.values()),
        **few,
        "trained": _size(moving["trained"]),
        "statistics": _size(moving["stats"]),
        "optimizer": _size(moving["opt_state"]),
        **({"ema": _size(moving["ema"])} if "ema" in moving else {}),
        **{name: _size(constant[name]) for name in ("anchor", "teacher") if constant[name]},
        "batch": _size(batch),
        "temporaries": int(found.temp_size_in_bytes),
        "program": int(found.output_size_in_bytes - found.alias_size_in_bytes + found.generated_code_size_in_bytes),
    }


def _size(tree) -> int:
    """Bytes of abstract arrays on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def _text(engine: Engine, params: dict[str, Any], figures: Figures) -> str:
    parts = ", ".join(f"{name} {readable(size)}" for name, size in figures.memory.items())
    used = readable(sum(figures.memory.values()))
    share = figures.trained_parameters / figures.total_parameters
    wasted = engine.padding
    return "\n".join(
        [
            plan_report.by_stage(engine.plan, engine.chains, params),
            "",
            f"parameters: {figures.trained_parameters:,} of {figures.total_parameters:,} train ({share:.1%})",
            f"steps: {figures.steps} of {figures.batch_size} examples, {figures.steps_per_epoch} an epoch",
            *([] if wasted is None else [str(wasted)]),
            f"cost: {figures.flops_per_step / 1e9:.2f} GFLOP a step, compiled",
            *([] if engine.mesh.size == 1 else _shared(engine.mesh.size, figures)),
            f"cut: {_kept(engine)}",
            *([] if engine.quantized is None else [f"frozen: {engine.quantized}"]),
            f"peak memory on a device: {used} ({parts}) of {readable(figures.memory_limit)}",
            f"largest batch that fits: {figures.batch_size_that_fits}, with {readable(figures.memory_that_fits)}; "
            f"{figures.batch_size_too_large} does not",
        ]
    )


def _shared(size: int, figures: Figures) -> list[str]:
    """What several devices do together."""
    kinds = (f"{kind} {each.count} ({readable(each.nbytes)})" for kind, each in figures.collectives.items())
    return [
        f"devices: {size}, {figures.flops_per_step / size / 1e9:.3g} GFLOP on each",
        f"collectives of a step, and what they leave on a device: {', '.join(kinds) or 'none'}",
    ]


def _compiled_for(pod: Pod, simulated: bool) -> str:
    if not simulated:
        return f"compiled for {pod.name}, {pod.count} devices, by the compiler of TPUs; nothing ran"
    why = "" if pod.kind.tpu is None else ", as libtpu is not installed (pip install 'tl_jax[tpu]')"
    return (
        f"compiled for {pod.count} simulated CPU devices in place of {pod.name}{why}: what parameters, optimizer and "
        "batch take is exact; temporaries, FLOPs and collectives are those of another compiler"
    )


def _kept(engine: Engine) -> str:
    # Of the run's folder it is enough that there will be one.
    cache = caching.Cache(engine, "cache")
    reason = cache.why_not()
    if reason is not None:
        return f"computed in every step, as {reason}"
    where = {"memory": "in the host's memory", "disk": "on disk"}[cache.place]
    return f"what crosses it is computed once and kept, {readable(cache.nbytes)} {where}"


def readable(size: float) -> str:
    """Bytes as a person reads them: 1.2 MB is 1.2e6 bytes."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
