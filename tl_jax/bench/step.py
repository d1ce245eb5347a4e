# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a training step of a config takes: time, FLOPs, memory, and what surrounds it.

    engine = bench_engine(exp, num_classes=None)
    state, loaded = engine.init_with_receipt()
    bench = StepBench(engine, state, batch)
    figures = measure(bench, loaded, steps=20, reads=True)

One batch, padded to `data.max_length`, lies on the devices and is used again in every step, so the figures of the step
hold none of the input; the input is measured by itself. A run of several phases is measured in its last.
"""

import contextlib
import dataclasses
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import config, costs, reading, remat, runs
from tl_jax.bench import peak, synthetic
from tl_jax.core import chain
from tl_jax.engine import Engine, build
from tl_jax.parallel import mesh as meshes
from tl_jax.plan.resolve import count
from tl_jax.pretrained import Loaded
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.state import State

WARMUP = 3
# Batches that were read ahead before the clock starts come for nothing; so many are let go by first.
_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Figures:
    """All that was measured; None where it was not.

    Attributes:
      device, devices: as JAX names it, and how many the mesh has.
      dtype: in what the network computes.
      trained_parameters, total_parameters: numbers.
      batch_size, length: examples a step, and tokens or samples each is padded to; no length for images.
      tokens: of a batch of texts, padding not counted.
      padding: the share of the batch that only fills up shorter texts or sounds; None for images.
      loss: of the first step.
      compile_seconds: from abstract arguments to a program, tracing included, nothing kept from an earlier compilation.
      step_ms: median, p10 and p90 of the time from calling the step until all that it returns is there.
      examples_per_second, tokens_per_second: by the median; padding is no token.
      flops: of the compiled step without loops over all devices: a plan that freezes needs fewer.
      bytes_accessed: of the same program, in the memory of one device, times the devices.
      peak_flops: FLOP/s of one device in a product of large matrices, see `peak.measured`.
      vendor_flops: the same by its data sheet.
      mfu: `flops` / (median × `peak_flops` × devices): against what the plan requires, not against training everything.
      memory: bytes on a device by part, by the compiler; see `costs.Figures`.
      device_peak_bytes: most that the first device held until the last step, by its own count.
      process_peak_bytes: most that the process held until then, where the device does not count.
      input_examples_per_second: of the pipeline alone, on the devices; None for synthetic data.
      input_core_examples_per_second: the same read by one core, without any reading thread.
      threads_needed: reading threads that keep up with the median step by that rate.
      checkpoint_bytes, checkpoint_ms: size of a checkpoint, and how long `save` holds the loop up.
      checkpoint_steps: the same time in steps.
      checkpoint_written_ms: until it is whole on disk, most of it while the loop goes on.
      dispatch_ms: median time until the call of the step returns, with all it does on the host.
      trivial_dispatch_ms: the same for a program that adds 1 to as many scalars as the step takes arguments.
      buffers: arrays that the step takes.
    """

    device: str
    devices: int
    dtype: str
    trained_parameters: int
    total_parameters: int
    batch_size: int
    length: int | None
    tokens: int | None
    padding: float | None
    loss: float
    compile_seconds: float
    step_ms: dict[str, float]
    examples_per_second: float
    tokens_per_second: float | None
    flops: float
    bytes_accessed: float
    peak_flops: float
    vendor_flops: float | None
    mfu: float
    memory: dict[str, int]
    device_peak_bytes: int | None
    process_peak_bytes: int | None
    input_examples_per_second: float | None
    input_core_examples_per_second: float | None
    threads_needed: int | None
    checkpoint_bytes: int | None
    checkpoint_ms: float | None
    checkpoint_steps: float | None
    checkpoint_written_ms: float | None
    dispatch_ms: float
    trivial_dispatch_ms: float
    buffers: int


def bench_engine(exp: config.Experiment, num_classes: int | None, examples: int | None = None) -> Engine:
    """The last phase of a run of this config, with batches of one length.

    Args:
      num_classes: of synthetic examples; None for the config's own data.
      examples: how many of them; one batch where None.
    """
    exp = dataclasses.replace(exp, data=dataclasses.replace(exp.data, buckets=()))
    engine = build(exp, **({} if num_classes is None else synthetic.parts(exp, num_classes, examples)))
    engine, _ = remat.settled(engine, costs.peak, meshes.memory_limit(engine.mesh))
    return engine.phase(len(engine.stretches) - 1)


def first_batch(engine: Engine) -> dict[str, jax.Array]:
    """The run's first batch, on the devices."""
    with contextlib.closing(engine.train_batches(0, 1)) as batches:
        return next(batches)


class StepBench:
    """The run's own step on one batch; keeps the state from one call to the next.

    Attributes:
      loss: of the first step; None before it.
    """

    def __init__(self, engine: Engine, state: State, batch: Mapping[str, jax.Array]):
        self.engine, self.state, self.batch = engine, state, batch
        self.loss: float | None = None

    def run(self, steps: int) -> tuple[list[float], list[float]]:
        """Seconds of each step, and of each until its call returned."""
        seconds, dispatched = [], []
        for _ in range(steps):
            began = time.perf_counter()
            self.state, metrics = self.engine.train_step(self.state, self.batch)
            dispatched.append(time.perf_counter() - began)
            jax.block_until_ready((self.state, metrics))
            seconds.append(time.perf_counter() - began)
            self.loss = float(metrics["loss"]) if self.loss is None else self.loss
        return seconds, dispatched


def measure(bench: StepBench, loaded: Loaded, steps: int, reads: bool) -> Figures:
    """Compile, warm up, and measure so many steps and all that surrounds them.

    Args:
      loaded: what the state began as; says what a checkpoint holds.
      reads: whether the pipeline reads data, which then is measured.
    """
    engine, batch, size = bench.engine, bench.batch, bench.engine.exp.train.batch_size
    began = time.perf_counter()
    compiled = costs.compile_step(engine, size)
    compile_seconds = time.perf_counter() - began
    bench.run(WARMUP)
    seconds, dispatched = bench.run(steps)
    device, host = _peak_memory(engine)
    step_ms = spread(seconds)
    by_example = size / (step_ms["median"] / 1e3)
    tokens = count_tokens(batch)
    plain = costs.without_loops(engine)
    whole = compiled if plain is None else costs.compile_step(plain, size)
    found, devices = whole.cost_analysis(), engine.mesh.size
    flops = float(found["flops"]) * devices
    product = peak.measured(jnp.dtype(engine.exp.model.dtype))
    kind = engine.mesh.local_devices[0].device_kind
    buffers = len(jax.tree.leaves((bench.state.moving, bench.state.constant, dict(batch))))
    _, params = chain.split(engine.model)
    kept = _checkpoint(engine, bench.state, loaded)
    return Figures(
        device=kind,
        devices=devices,
        dtype=engine.exp.model.dtype,
        trained_parameters=count(params, engine.plan.trained),
        total_parameters=count(params, params),
        batch_size=size,
        length=_length(batch),
        tokens=tokens,
        padding=_padding(engine),
        loss=bench.loss,
        compile_seconds=compile_seconds,
        step_ms=step_ms,
        examples_per_second=by_example,
        tokens_per_second=None if tokens is None else by_example * tokens / size,
        flops=flops,
        bytes_accessed=float(found["bytes accessed"]) * devices,
        peak_flops=product,
        vendor_flops=peak.vendor(kind, engine.exp.model.dtype),
        mfu=flops / (step_ms["median"] / 1e3 * product * devices),
        memory=costs.memory_by_part(engine, size, compiled),
        device_peak_bytes=device,
        process_peak_bytes=host,
        **_input(engine, steps, by_example, reads),
        **kept,
        checkpoint_steps=None if kept["checkpoint_ms"] is None else kept["checkpoint_ms"] / step_ms["median"],
        dispatch_ms=spread(dispatched)["median"],
        trivial_dispatch_ms=_trivial(buffers, steps),
        buffers=buffers,
    )


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, p10 and p90 in milliseconds, between two values by a straight line."""
    p10, median, p90 = np.percentile(np.asarray(seconds) * 1e3, (10, 50, 90)).tolist()
    return {"median": median, "p10": p10, "p90": p90}


def count_tokens(batch: Mapping[str, Any]) -> int | None:
    """Tokens of a batch of texts that its mask counts, or its segments; None for other batches."""
    if "input_ids" not in batch:
        return None
    told = [batch[name] for name in ("segments", "attention_mask") if name in batch]
    return int(np.count_nonzero(told[0])) if told else int(np.prod(batch["input_ids"].shape))


def _padding(engine: Engine) -> float | None:
    """Of the run's first batch, in which examples may stand twice."""
    indices, _, length = engine.train_plan.batch(0)
    return None if length is None else 1 - float(engine.train_plan.lengths[indices].sum()) / (len(indices) * length)


def _length(batch: Mapping[str, Any]) -> int | None:
    found = [batch[name].shape[1] for name in ("input_ids", "input_values", "input_features") if name in batch]
    return found[0] if found else None


def _peak_memory(engine: Engine) -> tuple[int | None, int | None]:
    """Of the first device, or else of the process."""
    stats = engine.mesh.local_devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"]), None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None, used if sys.platform == "darwin" else used * 1024


def _input(engine: Engine, steps: int, step_rate: float, reads: bool) -> dict[str, Any]:
    """Rates of reading, and what they say of a step that takes `step_rate` examples a second."""
    names = ("input_examples_per_second", "input_core_examples_per_second", "threads_needed")
    if not reads:
        return dict.fromkeys(names)
    alone = dataclasses.replace(engine.exp, data=dataclasses.replace(engine.exp.data, threads=0))
    core = _input_rate(dataclasses.replace(engine, exp=alone), steps)
    return dict(zip(names, (_input_rate(engine, steps), core, reading.threads_needed(step_rate, core))))


def _input_rate(engine: Engine, steps: int) -> float:
    """Examples a second over `steps` batches, once those that were read ahead are gone."""
    with contextlib.closing(engine.train_batches(0, _AHEAD + steps)) as batches:
        for number, batch in enumerate(batches, 1):
            jax.block_until_ready(batch)
            if number == _AHEAD:
                began = time.perf_counter()
    return steps * engine.exp.train.batch_size / (time.perf_counter() - began)


def _checkpoint(engine: Engine, state: State, loaded: Loaded) -> dict[str, Any]:
    """Of the second of two checkpoints, in a folder that is deleted again; several processes share none."""
    names = ("checkpoint_bytes", "checkpoint_ms", "checkpoint_written_ms")
    if jax.process_count() > 1:
        return dict.fromkeys(names)
    content = runs.checkpointed(engine, state, loaded)
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        checkpoints.save(1, content, {})
        checkpoints.wait()
        began = time.perf_counter()
        checkpoints.save(2, content, {})
        held = time.perf_counter() - began
        checkpoints.wait()
        written = time.perf_counter() - began
        size = sum(path.stat().st_size for path in (pathlib.Path(folder) / "2").rglob("*") if path.is_file())
    return dict(zip(names, (size, held * 1e3, written * 1e3)))


def _trivial(buffers: int, steps: int) -> float:
    """Milliseconds until the call of a program of so many arguments returns that has nothing to compute."""
    arguments = [jnp.float32(number) for number in range(buffers)]
    add = jax.jit(lambda values: [value + 1 for value in values])
    seconds = []
    for number in range(WARMUP + steps):
        began = time.perf_counter()
        results = add(arguments)
        if number >= WARMUP:
            seconds.append(time.perf_counter() - began)
        jax.block_until_ready(results)
    return spread(seconds)["median"]
