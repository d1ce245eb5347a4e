# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are proven whole before they count.

    with Checkpoints("runs/x/checkpoints", keep=1, metric_mode="max") as checkpoints:
        checkpoints.save(step, {"trained": trained, "opt_state": opt_state}, {"epoch": 2}, metric=0.9)
        tree, progress = checkpoints.restore(checkpoints.latest(), abstract)

Orbax writes the arrays to `STEP/`, asynchronously; then a thread hashes every file into `STEP.json` (manifest.py).
That manifest is the commit: a folder without one does not count, and a step that no longer matches its own is passed
over. Older steps go only when the new manifest is in place; reading deletes nothing. With several processes every
method is collective, and process 0 hashes, deletes and decides. Knows arrays by path, not what they mean.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from tl_jax.core.errors import UserError
from tl_jax.train import manifest

_log = logging.getLogger("tl_jax")
_OURS = re.compile(r"(\d+)(?:\.json|\.json\.tmp|\.orbax-checkpoint-tmp.*)?")
_NONE = -1


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best by metric.

    Args:
      folder: local or remote (`gs://`); made by the first save. With several processes it must be shared.
      keep: how many of the newest steps stay, at least 1.
      metric_mode: whether the best metric is the largest or the smallest.
    """

    def __init__(self, folder: str | epath.Path, *, keep: int = 1, metric_mode: Literal["max", "min"] = "max"):
        assert keep >= 1 and metric_mode in ("max", "min"), (keep, metric_mode)
        self.folder = epath.Path(folder)
        if "://" not in str(folder):
            self.folder = self.folder.resolve()  # Orbax refuses relative paths.
        self._keep, self._sign = keep, 1 if metric_mode == "max" else -1
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future] | None = None

    def save(self, step: int, tree: Any, progress: dict, metric: float | None = None) -> None:
        """Start saving; the arrays may be donated as soon as this returns.

        A step that is already there and whole is kept as it is, with a line in the log: the same step of the same
        run has the same arrays, and replacing it would leave a moment without a checkpoint.

        Args:
          step: the number of updates that `tree` holds, at least 0.
          tree: arrays of any dtype, typed PRNG keys among them.
          progress: what else a resumed run needs, as JSON.
          metric: what `best` goes by; a step whose metric is None or not finite is never the best.

        Raises:
          FloatingPointError: a leaf holds NaN or infinity, so the step must not become the latest.
          Exception: whatever made the previous save fail, with a note that names its step.
        """
        self.wait()
        leaves = _by_path(tree)
        _refuse_non_finite(step, leaves)
        content = {
            "metric": float(metric) if metric is not None and math.isfinite(metric) else None,
            # Read back, so that it is what a restore will give, and stays so when the caller's dict moves on.
            "progress": json.loads(json.dumps(progress, allow_nan=False)),
            "leaves": {path: _kind(leaf) for path, leaf in leaves.items()},
        }
        if _decide(lambda: self._make_room(step)):
            _log.warning("%s: step %d is already saved and whole, kept as it is", self.folder, step)
            return
        # Orbax refuses arrays of size zero; the manifest says all there is to know about them.
        arrays = {path: leaf for path, leaf in leaves.items() if leaf.size}
        response = ocp.save_async(self.folder / str(step), arrays)
        self._pending = step, self._pool.submit(self._commit, response, step, content)

    def wait(self) -> None:
        """Return when the save under way has become a checkpoint; raise what made it fail."""
        if self._pending is None:
            return
        step, future = self._pending
        error = future.exception()
        self._pending = None
        anywhere = np.any(multihost_utils.process_allgather(np.int32(error is not None)))
        if error is None and anywhere:
            error = RuntimeError("saving failed on another process")
        if error is not None:
            error.add_note(f"{self.folder}: step {step} was not saved")
            raise error

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def steps(self) -> list[int]:
        """Every step with a manifest, ascending; whether its files are whole is not read."""
        self.wait()
        return manifest.steps(self.folder)

    def latest(self) -> int | None:
        """The newest step that is whole; damaged ones are passed over, each with a line in the log."""
        self.wait()
        step = _decide(lambda: self._first_whole(reversed(manifest.steps(self.folder))))
        return None if step == _NONE else step

    def progress(self, step: int) -> dict:
        """What was saved beside the arrays of a step."""
        self.wait()
        return manifest.read(self.folder, step)["progress"]

    def best(self) -> int | None:
        """The whole step with the best metric, the earlier of two that are equal."""
        self.wait()
        step = _decide(lambda: self._first_whole(self._ranked()))
        return None if step == _NONE else step

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict]:
        """The tree of a step, on the shardings asked for, and the progress saved with it.

        Args:
          step: one of `steps()`.
          abstract: `jax.ShapeDtypeStruct` leaves with shardings, in the containers wanted back; any mesh will do.

        Raises:
          UserError: the step is missing or damaged, or leaves differ in path, shape or dtype, naming all of them.
        """
        self.wait()
        where, damage = str(self.folder / str(step)), []

        def is_whole() -> bool:
            damage.extend(manifest.damage(self.folder, step))
            return not damage

        if not _decide(is_whole):
            what = "; ".join(damage) or "missing or damaged, as process 0 says"
            raise UserError(where, what, f"there are steps {self.steps()}")
        saved, wanted = manifest.read(self.folder, step), _by_path(abstract)
        assert all(leaf.sharding is not None for leaf in wanted.values()), "abstract leaves need shardings"
        _compare(saved["leaves"], {path: _kind(leaf) for path, leaf in wanted.items()}, where)
        found = ocp.load(self.folder / str(step), {path: leaf for path, leaf in wanted.items() if leaf.size})
        empty = {path: jnp.zeros(x.shape, x.dtype, device=x.sharding) for path, x in wanted.items() if not x.size}
        # Orbax gives a typed key the sharding of its data, one dimension too many; else this moves nothing.
        leaves = [jax.device_put((found | empty)[path], leaf.sharding) for path, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), saved["progress"]

    def _commit(self, response, step: int, content: dict) -> None:
        """In the thread: once Orbax is done, write the manifest, then delete what it makes superfluous."""
        response.result()
        if jax.process_index() != 0:
            return
        manifest.write(self.folder, step, content)
        steps = manifest.steps(self.folder)
        for old in set(steps) - {step, *steps[-self._keep :], *self._ranked()[:1]}:
            # The manifest first: a step half deleted does not count.
            (self.folder / f"{old}.json").unlink()
            (self.folder / str(old)).rmtree()

    def _make_room(self, step: int) -> bool:
        """Whether `step` is already saved; else delete what is left of it, and of all saves that never ended."""
        committed = set(manifest.steps(self.folder))
        if step in committed and not manifest.damage(self.folder, step):
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            match = _OURS.fullmatch(path.name)
            if match and int(match[1]) not in committed - {step}:
                path.rmtree() if path.is_dir() else path.unlink()
        return False

    def _ranked(self) -> list[int]:
        """Steps with a metric, the best first; one whose manifest is damaged has none."""
        metrics = {}
        for step in manifest.steps(self.folder):
            try:
                metrics[step] = manifest.read(self.folder, step)["metric"]
            except manifest.Damaged:
                continue
        return sorted((s for s in metrics if metrics[s] is not None), key=lambda s: (-self._sign * metrics[s], s))

    def _first_whole(self, steps: Iterable[int]) -> int:
        for step in steps:
            damage = manifest.damage(self.folder, step)
            if not damage:
                return step
            _log.warning("%s: step %d is passed over: %s", self.folder, step, "; ".join(damage))
        return _NONE


def _decide(function: Callable[[], int]) -> int:
    """What `function` returns on process 0, on every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(function() if jax.process_index() == 0 else 0)))


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by `/` path. Orbax sees only this flat dict; containers, empty ones too, come from the abstract tree."""
    leaves = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves share a path"
    return named


def _kind(leaf) -> list:
    return [str(leaf.dtype), list(leaf.shape)]


def _compare(saved: dict[str, list], wanted: dict[str, list], where: str) -> None:
    """Orbax would cast dtypes silently, and its words on shapes and names mislead."""

    def spell(kind):
        return f"{kind[0]}{kind[1]}"

    wrong = [f"{p} {spell(wanted[p])} was not saved" for p in wanted if p not in saved]
    wrong += [f"{p} {spell(saved[p])} was saved and is not asked for" for p in saved if p not in wanted]
    both = [p for p in wanted if p in saved and saved[p] != wanted[p]]
    wrong += [f"{p} was saved as {spell(saved[p])}, {spell(wanted[p])} is asked for" for p in both]
    if wrong:
        what = f"{len(wrong)} leaves differ from those of this run: " + "; ".join(wrong)
        raise UserError(where, what, "resume with the config that saved it, or use another workdir")


def _refuse_non_finite(step: int, leaves: dict[str, Any]) -> None:
    floats = {path: leaf for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    finite = _all_finite(list(floats.values()))
    bad = [path for path, ok in zip(floats, finite) if not np.asarray(ok)]
    if bad:
        raise FloatingPointError(f"step {step} is not saved, NaN or infinity in {', '.join(bad)}")


@jax.jit
def _all_finite(arrays: list) -> list:
    return [jnp.isfinite(x).all() for x in arrays]
