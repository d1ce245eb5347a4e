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
import sys
import tempfile
import time
from collections.abc import Sequence

from tl_jax import config, runs
from tl_jax.core.errors import UserError
from tl_jax.report.table import markdown
from tl_jax.sweeping import sweep


def main(argv: Sequence[str]) -> None:
    """Run both in turns and print a table."""
    given, overrides = {"rates": "16", "seeds": "3", "repeats": "3"}, {}
    for word in argv:
        name, _, value = word.removeprefix("--").partition("=")
        (overrides if name.startswith("config.") else given)[name.removeprefix("config.")] = value
    if "config" not in given:
        raise UserError("side_by_side", "--config must be given", "see the head of this module")
    exp = dataclasses.replace(config.load(given["config"], overrides), baseline={})
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
        found = sweep(exp, points)
        many.append(time.perf_counter() - began)
    best = max(found, key=lambda each: each.validation[exp.train.metric or "accuracy"])
    alone = statistics.median(one)
    rows = [
        {"": name, "seconds": f"{statistics.median(values):.1f}", "ratio": f"{statistics.median(values) / alone:.2f}"}
        for name, values in seconds.items()
    ]
    print(markdown(rows, ["", "seconds", "ratio"]))
    print(f"best: {best.point}, test {dict(best.test)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
