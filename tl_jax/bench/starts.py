# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the first start of a run spends on compiling, and what every later one.

    python -m tl_jax.bench.starts --config=minilm_sst2 --config.data.path=path/to/sst2 --config.train.steps=3 --starts=3

Each start is a process with a workdir of its own; all share one folder of compiled programs, empty at first.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from tl_jax import config
from tl_jax.bench import words
from tl_jax.core.errors import UserError
from tl_jax.report.table import markdown

# What JAX says of the time in XLA, in which it also looks for programs that are kept, and of each that it finds.
_TIME, _FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
_START = f"""
import json, pathlib, sys
import jax
spent, found = [], []
jax.monitoring.register_event_duration_secs_listener(lambda name, s, **_: spent.append(s if name == {_TIME!r} else 0))
jax.monitoring.register_event_listener(lambda name, **_: found.append(name == {_FOUND!r}))
from tl_jax.cli import main
try:
    main(["launch.py", *sys.argv[2:]])
finally:
    pathlib.Path(sys.argv[1]).write_text(json.dumps([sum(spent), sum(found)]))
"""


def start(asked: pathlib.Path, folder: pathlib.Path, cache: pathlib.Path) -> dict[str, float]:
    """The figures of one start: seconds in XLA and of the whole process, and how many programs were found kept.

    Raises:
      UserError: it failed; what it said went to stderr.
    """
    folder.mkdir()
    flags = [f"--config={asked}", f"--workdir={folder / 'run'}", f"--compile_cache={cache}", "--quiet"]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _START, folder / "spent", *flags], stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - began
    if done.returncode:
        raise UserError("starts", f"the run ended with {done.returncode}", "see above")
    spent, found = json.loads((folder / "spent").read_text())
    return {"XLA": spent, "process": whole, "programs found": found}


def main(argv: Sequence[str]) -> None:
    """Start it several times and print a table."""
    exp, given = words.read(argv, {"starts": "2"})
    rows = []
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        (home / "asked.json").write_text(json.dumps(config.to_dict(exp)))
        for number in range(int(given["starts"])):
            found = start(home / "asked.json", home / str(number), home / "cache")
            first = rows[0]["XLA"] if rows else found["XLA"]
            rows.append({"start": str(number + 1), **found, "ratio": f"{found['XLA'] / first:.2f}"})
    print(markdown([{name: _text(value) for name, value in row.items()} for row in rows], list(rows[0])))


def _text(value: str | float | int) -> str:
    return f"{value:.2f} s" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    words.run(main)
