# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run measured, step by step: `metrics.jsonl`, and the same as TensorBoard events beside it.

    log = MetricsLog("runs/x")
    log.truncate(step=120)                            # on resume: what came after the restored step never happened
    log.write(130, "train", {"loss": 0.41, "learning_rate": 1e-4})
    read("runs/x")[-1]                                # {"step": 130, "kind": "train", "loss": 0.41, ...}

One strict JSON object a line. JSON has no NaN, so a number that is not finite stands as the string "NaN", "Infinity"
or "-Infinity", and `read` gives the number back. Knows names and numbers; only one process may write.
"""

import json
import math
import time
from typing import Any, Literal

from etils import epath

from tl_jax.core.errors import UserError

_NAME = "metrics.jsonl"
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
    """The metrics of one run, appended to line by line.

    Args:
      folder: that of the run, local or remote; made by the first line.
    """

    def __init__(self, folder: str | epath.Path):
        self._folder = epath.Path(folder)
        self._purge_step = 0  # A fresh run says so too: TensorBoard purges from the second session start on.
        self._writer = None

    def write(self, step: int, kind: Literal["train", "validation", "test"], metrics: dict[str, Any]) -> None:
        """Append one line, on disk when this returns, and one TensorBoard scalar for each number.

        Args:
          metrics: numbers or scalar arrays by name; text is kept in the line alone.
        """
        values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        line = {"step": step, "kind": kind} | {name: _spell(value) for name, value in values.items()}
        self._folder.mkdir(parents=True, exist_ok=True)
        _append(self._folder / _NAME, json.dumps(line, allow_nan=False) + "\n")
        for name, value in values.items():
            if not isinstance(value, str):
                self._events().add_scalar(f"{kind}/{name}", value, step)

    def truncate(self, step: int) -> None:
        """Cut the lines after `step`, and hide the TensorBoard events after it; call it before the first `write`."""
        assert self._writer is None, "truncate comes before the first write"
        self._purge_step = step + 1
        path = self._folder / _NAME
        if path.exists():
            temporary = self._folder / f"{_NAME}.tmp"
            temporary.write_text("".join(text for text, line in _lines(path) if line["step"] <= step))
            temporary.replace(path)

    def close(self) -> None:
        """Write out the TensorBoard events."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _events(self):
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # Its own file names count whole seconds, so a quick resume would overwrite the file before.
            suffix = f".{time.time_ns()}"
            self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step, filename_suffix=suffix)
        return self._writer


def read(folder: str | epath.Path) -> list[dict[str, Any]]:
    """Every line of a run's `metrics.jsonl`, in order; empty when there is none.

    Raises:
      UserError: a line that is no JSON object with a step, unless it is the last, cut short by a kill.
    """
    path = epath.Path(folder) / _NAME
    if not path.exists():
        return []
    return [
        {name: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in line.items()}
        for _, line in _lines(path)
    ]


def _lines(path: epath.Path) -> list[tuple[str, dict]]:
    """Each line as text and as read; one without its newline is what a kill left, and does not count."""
    found = []
    for number, text in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if not text.endswith("\n"):
            break
        try:
            line = json.loads(text)
            line["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            what = f"line {number} is not a JSON object with a step"
            raise UserError(str(path), what, "remove that line") from error
        found.append((text, line))
    return found


def _spell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _append(path: epath.Path, line: str) -> None:
    if _is_remote(path):  # Object stores cannot append.
        path.write_text((path.read_text() if path.exists() else "") + line)
        return
    with path.open("a") as file:
        file.write(line)


def _is_remote(path: epath.Path) -> bool:
    return "://" in str(path)
