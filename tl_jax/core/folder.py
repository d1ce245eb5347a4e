# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: one run at a time in it, and files that are whole or not there."""

import contextlib
import json
from typing import Any

from etils import epath

from tl_jax.core.errors import UserError


def open_folder(path: str | epath.Path) -> epath.Path:
    """The folder, made if need be.

    Raises:
      UserError: it cannot be made or written to.
    """
    folder = epath.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            str(path), f"cannot be used as workdir ({reason})", "give --workdir a folder of yours"
        ) from error
    return folder


@contextlib.contextmanager
def locked(folder: epath.Path):
    """Hold the folder; a lock of a process that died is none. Remote folders are not locked.

    Raises:
      UserError: another run holds it.
    """
    if "://" in str(folder):
        yield
        return
    import fcntl

    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                str(folder), "another run is writing here", "wait for it or give another --workdir"
            ) from error
        yield


def write_json(path: epath.Path, value: Any) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def read_json(path: epath.Path) -> Any:
    """The content, or None where there is no such file.

    Raises:
      UserError: it is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(
            str(path), f"not JSON, {error.msg} at line {error.lineno}", "start in another workdir"
        ) from error


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """'train.steps: 20, now 30' for every field in which two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [text for key in keys for text in differences(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if old == new else [f"{prefix.rstrip('.')}: {old!r}, now {new!r}"]
