# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in files, mapped into memory: proven whole, or not there.

    with mapped.held(folder):                             # one process at a time; waits for another
        arrays = mapped.read(folder, shapes)              # None unless all of them are there, as they were written
        if arrays is None:
            arrays = mapped.create(folder, shapes)        # zeros; writing to them writes to the files
            ...
            mapped.commit(folder, arrays, about)

The manifest is the commit: it is written last, whole or not at all, with the size and CRC-32 of every file. Reading
compares all of it: one pass over files that training is about to read anyway. Knows arrays and local files.
"""

import contextlib
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from tl_jax.core import folder as folders
from tl_jax.core.errors import UserError

_log = logging.getLogger("tl_jax")
_MANIFEST = "manifest.json"
_CHUNK = 1 << 22


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Hold the folder, which need not be there; a lock of a process that died is none."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def create(folder: pathlib.Path, shapes: Sequence[jax.ShapeDtypeStruct]) -> list[np.ndarray]:
    """Arrays of zeros in new files, in place of all that the folder held.

    Raises:
      OSError: no room, or no folder to write to.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arrays = []
    for number, shape in enumerate(shapes):
        path = folder / _name(number)
        array = np.memmap(path, shape.dtype, "w+", shape=shape.shape)
        if hasattr(os, "posix_fallocate"):
            # A mapped file takes its room when it is written to, and where there is none the process dies unheard.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, array.nbytes)
        arrays.append(array)
    return arrays


def commit(folder: pathlib.Path, arrays: Sequence[np.memmap], about: dict[str, Any]) -> None:
    """Write the manifest of arrays that `create` made and that are now filled.

    Args:
      about: plain data to be kept in it.
    """
    for array in arrays:
        array.flush()
    files = {_name(number): _proof(folder / _name(number)) for number in range(len(arrays))}
    folders.write_json(epath.Path(folder) / _MANIFEST, {"about": about, "files": files})


def read(folder: pathlib.Path, shapes: Sequence[jax.ShapeDtypeStruct]) -> list[np.ndarray] | None:
    """The arrays of these shapes, read-only; None where nothing finished is there or, with a warning, something other
    than was written."""
    try:
        manifest = folders.read_json(epath.Path(folder) / _MANIFEST)
        if manifest is None:
            return None
        wrong = []
        for number, shape in enumerate(shapes):
            found = _proof(folder / _name(number))
            if found != manifest["files"][_name(number)] or found["bytes"] != _nbytes(shape):
                wrong.append(_name(number))
    except (OSError, UserError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        wrong = [f"{type(error).__name__} {error}"]
    if wrong:
        _log.warning("%s is passed over, not what was written: %s", folder, ", ".join(wrong))
        return None
    return [np.memmap(folder / _name(n), shape.dtype, "r", shape=shape.shape) for n, shape in enumerate(shapes)]


def finished(folder: pathlib.Path) -> bool:
    """Whether arrays were written there to the end; `read` tells whether they still are what they were."""
    return (folder / _MANIFEST).exists()


def free(folder: pathlib.Path) -> int:
    """Bytes that the disk under the folder has left."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _name(number: int) -> str:
    return f"{number}.bin"


def _nbytes(shape: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(shape.shape)) * shape.dtype.itemsize


def _proof(path: pathlib.Path) -> dict[str, int]:
    """Size and CRC-32 of a file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return {"bytes": size, "crc32": crc}
