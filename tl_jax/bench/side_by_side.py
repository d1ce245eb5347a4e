# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What many runs side by side take, against one of them alone.

    python -m tl_jax.bench.side_by_side --config=minilm_sst2 --config.data.path=path/to/sst2 \\
        --config.plan.preset=linear_probe --rates=16 --seeds=3 --repeats=3

Rates are spread geometrically from a tenth of the config's to ten times it. One and all take turns; the seconds are of
everything: reading, the features that cross the cut, compilation, training, validation and test.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence

from tl_jax import runs
from tl_jax.bench import words
from tl_jax.report.table import markdown
from tl_jax.sweeping import sweep


def main(argv: Sequence[str]) -> None:
    """Run both in turns and print a table."""
    exp, given = words.read(argv, {"rates": "16", "seeds": "3", "repeats": "3"})
    exp = dataclasses.replace(exp, baseline={})
    rates, seeds, middle = int(given["rates"]), int(given["seeds"]), exp.optimizer.learning_rate
    points = [
        {"optimizer.learning_rate": middle * 10 ** (2 * number / max(rates - 1, 1) - 1), "seed": seed}
        for number in range(rates)
        for seed in range(seeds)
    ]
    seconds: dict[str, list[float]] = {"one run": [], f"{len(points)} side by side": []}
    one, many = seconds.values()
    for _ in range(int(given["repeats"])):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            runs.run(exp, f"{folder}/run", quiet=True)
            one.append(time.perf_counter() - began)
        began = time.perf_counter()
        sweep(exp, points)
        many.append(time.perf_counter() - began)
    alone = statistics.median(one)
    rows = [
        {"": name, "seconds": f"{statistics.median(values):.1f}", "ratio": f"{statistics.median(values) / alone:.2f}"}
        for name, values in seconds.items()
    ]
    print(markdown(rows, ["", "seconds", "ratio"]))


if __name__ == "__main__":
    words.run(main)
