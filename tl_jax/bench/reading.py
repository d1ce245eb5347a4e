# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Examples a second of a config's pipeline, by how many threads read and how far ahead.

    python -m tl_jax.bench.reading --config=images --config.data.path=photos --batches=20 --repeats=3

Nothing is trained and no weight is read; the ways take turns. Where threads are many and batches few, the last ones are
read by some of the threads alone: time several batches a thread.
"""

import contextlib
import statistics
import time
from collections.abc import Sequence

from tl_jax import reading
from tl_jax.bench import words
from tl_jax.core.errors import UserError
from tl_jax.data import pipeline
from tl_jax.engine import Engine, build
from tl_jax.report.table import markdown

# Threads, and batches read ahead; the calling thread reads none ahead, and every thread reads one.
_WAYS = ((0, 0), (1, 2), (1, 8), (2, 2), (2, 8), (4, 4), (4, 8))


def rate(engine: Engine, threads: int, ahead: int, batches: int) -> float:
    """Examples a second over the run's first batches, from the records to the arrays of a batch."""
    examples, transform, plan = engine.source(engine.batched["train"], engine.train_plan, True)
    stream = pipeline.batches(
        examples,
        transform,
        plan,
        start=0,
        stop=batches,
        rows=slice(None),
        seed=engine.exp.seed,
        augment=True,
        threads=threads,
        prefetch=ahead,
    )
    # Nothing is read before the first is asked for, so none comes for nothing.
    began = time.perf_counter()
    with contextlib.closing(stream):
        count = sum(1 for _ in stream)
    return count * plan.batch_size / (time.perf_counter() - began)


def main(argv: Sequence[str]) -> None:
    """Read in every way, in turns, and print a table of medians."""
    exp, given = words.read(argv, {"batches": "20", "repeats": "3"})
    counts = {name: int(given[name]) for name in given}
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name}", f"is {count}, must be at least 1")
    engine = build(exp)
    found: dict[tuple[int, int], list[float]] = {way: [] for way in _WAYS}
    for _ in range(counts["repeats"]):
        for way, rates in found.items():
            rates.append(rate(engine, *way, counts["batches"]))
    medians = {way: statistics.median(rates) for way, rates in found.items()}
    rows = [
        {
            "data.threads": str(threads),
            "read ahead": str(ahead),
            "examples a second": f"{medians[threads, ahead]:,.1f}",
            "times as fast": f"{medians[threads, ahead] / medians[_WAYS[0]]:.2f}",
        }
        for threads, ahead in _WAYS
    ]
    print(markdown(rows, list(rows[0])))
    print(f"{reading.cores()} cores, batches of {exp.train.batch_size}")


if __name__ == "__main__":
    words.run(main)
