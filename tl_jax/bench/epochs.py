# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""All epochs of a run, compilation and the one pass over what is frozen included, beside as many steps in PyTorch.

    python -m tl_jax.bench.epochs --config=… --examples=2048 --epochs=10 --classes=2 --threads=2

On random examples in the shapes of the config, see `bench.synthetic`. PyTorch keeps nothing between epochs, as its
users' loops do not: it makes every step on one batch of the same shape, which lies in memory, in the faster of its two
modes; its compilation and its first steps are not counted. Neither side evaluates or saves.
"""

import time
from collections.abc import Sequence

import jax

from tl_jax import caching
from tl_jax.bench import against, words
from tl_jax.bench.step import WARMUP, StepBench, bench_engine, first_batch
from tl_jax.core.errors import UserError
from tl_jax.engine import Engine
from tl_jax.report.table import markdown
from tl_jax.resident import Resident


def main(argv: Sequence[str]) -> None:
    """Time one side, then the other, and print a table."""
    exp, given = words.read(argv, {"examples": "2048", "epochs": "10", "classes": "2", "threads": "1"})
    threads = int(given["threads"])
    against.limit_threads(threads)
    engine = bench_engine(against.without_dropout(exp), int(given["classes"]), int(given["examples"]))
    if not caching.Cache(engine).pays:
        raise UserError("plan", "leaves no block below the cut", "train less, as plan.preset=linear_probe does")
    steps, batch = int(given["epochs"]) * engine.steps_per_epoch, first_batch(engine)
    # A program of its own: what is timed below takes what crosses the cut instead of inputs.
    plain = StepBench(engine, engine.init(), batch)
    plain.run(1)
    with against.opened(engine, engine.init(), batch, threads) as torch:
        torch.warm_up(WARMUP)
        if not torch.agrees(plain.loss):
            raise UserError("--config", f"the losses of the first step differ: {plain.loss} and {torch.loss}")
        mode, theirs = torch.run_all(steps)
    ours = run_all(engine, steps)
    rows = [
        {"side": "tl_jax, all included", "seconds": f"{ours:.1f}", "times as fast": f"{theirs / ours:.2f}"},
        {"side": f"PyTorch, {mode}", "seconds": f"{theirs:.1f}", "times as fast": "1.00"},
    ]
    print(markdown(rows, list(rows[0])))
    print(f"{steps} steps of {exp.train.batch_size}, {len(engine.sets['train'])} examples")


def run_all(engine: Engine, steps: int) -> float:
    """Seconds from a state at step 0 to one after so many steps, nothing kept or compiled before."""
    state = jax.block_until_ready(engine.init())
    began = time.perf_counter()
    caching.Cache(engine).fill(state)
    resident = Resident(engine)
    resident.load()
    for _, updates in resident.updates(0, steps, pause=lambda done: done + engine.exp.train.log_every):
        state, _ = resident.step(state, updates)
    jax.block_until_ready(state)
    return time.perf_counter() - began


if __name__ == "__main__":
    words.run(main)
