# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: held by one run at a time, and only for what it was begun with.

with held(epath.Path("runs/x")) as folder:
    check_same(exp, folder)
    write(folder / "config.json", config.to_dict(exp))
"""

import contextlib
import hashlib
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from tl_jax import config
from tl_jax.core import folder as folders
from tl_jax.core.errors import UserError, shorten
from tl_jax.pretrained import Loaded

# What may differ when a run goes on: it changes neither the batches nor the mathematics.
_MAY_CHANGE = ("mesh", "data.threads", "profile", "train.remat", "train.scan", "train.cache_dir")
# What holding a workdir leaves in it.
_MARKS = {".lock", ".shared"}


@contextlib.contextmanager
def held(folder: epath.Path):
    """The workdir, made and held for this run alone; given up again as it was if nothing was written to it."""
    if jax.process_index() > 0:
        _check_shared(folder)
        yield folder
        return
    was_there = folder.exists()
    with folders.locked(folders.open_folder(folder)):
        _check_shared(folder)
        try:
            yield folder
        finally:
            if {path.name for path in folder.iterdir()} <= _MARKS and not was_there:
                folder.rmtree()


def check_same(exp: config.Experiment, folder: epath.Path) -> None:
    """Raise UserError where the folder holds a run of another config."""
    old = folders.read_json(folder / "config.json")
    if old is None:
        return
    # Read as a config, so that a field which is newer than the run has its default.
    old = config.to_dict(config.from_dict(old, str(folder / "config.json")))
    found = folders.differences(old, config.to_dict(exp))
    found = [text for text in found if not text.startswith(_MAY_CHANGE)]
    if found:
        raise UserError(
            str(folder),
            f"holds a run of another config ({shorten(found)})",
            "give another --workdir, or the old values to go on",
        )


def check_base(folder: epath.Path, loaded: Loaded) -> None:
    """Raise UserError where the run in the folder started from other weights, or learnt from others."""
    receipt = folders.read_json(folder / "receipt.json")
    if receipt is None:
        return
    ours, advice = loaded.receipt, "put the old weights back or start in another workdir"
    if receipt["digest"] != ours.digest:
        told = f"is not what this run started from (sha256 {ours.digest[:12]}, was {receipt['digest'][:12]})"
        raise UserError(ours.source, told, advice)
    old = receipt.get("teacher", "")
    # A run that is only opened asks no teacher.
    if ours.teacher and old != ours.teacher:
        told = f"is not what taught this run (sha256 {ours.teacher[:12]}, was {old[:12]})"
        raise UserError("distill.teacher", told, advice)


def write(path: epath.Path, value: Any) -> None:
    """A file of JSON, by the first process."""
    if jax.process_index() == 0:
        folders.write_json(path, value)


def _check_shared(folder: epath.Path) -> None:
    """All processes must see the same folder; told at the start rather than at the first checkpoint."""
    if jax.process_count() == 1:
        return
    mark = folder / ".shared"
    if jax.process_index() == 0:
        mark.write_text(str(time.time_ns()))
    multihost_utils.sync_global_devices("workdir written")
    seen = mark.read_text() if mark.exists() else ""
    number = int(hashlib.sha256(seen.encode()).hexdigest()[:7], 16)
    every = multihost_utils.process_allgather(np.int32(number))
    if len(set(every.tolist())) > 1:
        raise UserError(str(folder), "is not the same folder on all processes", "give a --workdir that they share")
