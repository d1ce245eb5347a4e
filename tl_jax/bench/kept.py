# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A step over what crosses the cut, kept, against the same step that computes it: what an epoch after the first gains.

    python -m tl_jax.bench.kept --config=… --classes=1000 --steps=20 --repeats=3

On random examples in the shapes of the config, see `bench.synthetic`; both take turns.
"""

import statistics
import time
from collections.abc import Sequence

import jax

from tl_jax import caching
from tl_jax.bench import words
from tl_jax.bench.step import WARMUP, StepBench, bench_engine, first_batch
from tl_jax.core.errors import UserError
from tl_jax.report.table import markdown


def main(argv: Sequence[str]) -> None:
    """Run both in turns and print a table."""
    exp, given = words.read(argv, {"classes": "2", "steps": "20", "repeats": "3"})
    engine = bench_engine(exp, int(given["classes"]))
    cache, state = caching.Cache(engine), engine.init()
    if not cache.pays:
        raise UserError("plan", "leaves no block below the cut", "train less, as plan.preset=last_n does")
    inputs = first_batch(engine)
    began = time.perf_counter()
    cache.fill(state)
    filled = time.perf_counter() - began
    # What is donated to one must not be the other's.
    computed = StepBench(engine, jax.tree.map(lambda leaf: leaf.copy(), state), inputs)
    kept = StepBench(engine, state, first_batch(engine))
    seconds: dict[str, list[float]] = {"computed": [], "kept": []}
    sides = list(zip((computed, kept), seconds.values()))
    for bench, _ in sides:
        bench.run(WARMUP)
    for _ in range(int(given["repeats"])):
        for bench, times in sides:
            times += bench.run(int(given["steps"]))[0]
    if abs(computed.loss - kept.loss) > 1e-4 * abs(computed.loss):
        raise UserError("kept", f"the losses of the first step differ: {computed.loss} and {kept.loss}")
    slow = statistics.median(seconds["computed"])
    rows = [
        {
            "what crosses the cut is": name,
            "ms a step": f"{1e3 * statistics.median(times):.1f}",
            "times as fast": f"{slow / statistics.median(times):.2f}",
        }
        for name, times in seconds.items()
    ]
    print(markdown(rows, list(rows[0])))
    print(f"computing it once, compilation included: {filled:.1f} s for {len(engine.sets['train'])} examples")


if __name__ == "__main__":
    words.run(main)
