# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The manifest of a saved step: what `STEP/` must hold, byte for byte, in `STEP.json` beside it.

    write(folder, 120, {"metric": 0.9, "progress": {}, "leaves": {}})
    damage(folder, 120)      # [] when every file is what was saved

It holds {"step", "files": {name: sha256}, "metric", "progress", "leaves": {path: [dtype, shape]}, "digest"}, where the
digest is that of the rest, so the manifest proves itself too. Orbax by itself restores flipped bits silently. Knows
files and JSON, not arrays.
"""

import hashlib
import json
import os

from etils import epath


class Damaged(Exception):
    """A manifest that cannot be believed; the text names the file."""


def write(folder: epath.Path, step: int, content: dict) -> None:
    """Hash every file of the step and put its manifest in place, whole or not at all.

    Args:
      content: plain JSON with string keys and finite numbers.
    """
    path, temporary = folder / f"{step}.json", folder / f"{step}.json.tmp"
    data = _encode(content | {"step": step, "files": _digests(folder / str(step))})
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if "://" not in str(path):  # Older steps are deleted next, so this one must outlive a power cut.
            os.fsync(file.fileno())
    temporary.replace(path)


def read(folder: epath.Path, step: int) -> dict:
    """The manifest, less its digest.

    Raises:
      Damaged: it is missing, unreadable or not what was written.
    """
    name = f"{step}.json"
    try:
        data = (folder / name).read_bytes()
        manifest = json.loads(data)
        manifest.pop("digest")
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({type(error).__name__})") from error
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"{name} is not a manifest") from error
    if _encode(manifest) != data:
        raise Damaged(f"{name} is not what was saved")
    return manifest


def damage(folder: epath.Path, step: int) -> list[str]:
    """What is wrong with the files of a step, each in a few words; empty when all are what was saved."""
    try:
        files = read(folder, step)["files"]
    except Damaged as error:
        return [str(error)]
    wrong = []
    for name, digest in files.items():
        try:
            if _sha256(folder / str(step) / name) != digest:
                wrong.append(f"{step}/{name} is not what was saved")
        except OSError as error:
            wrong.append(f"{step}/{name} cannot be read ({type(error).__name__})")
    return wrong


def steps(folder: epath.Path) -> list[int]:
    """Steps that have both a folder and a manifest, ascending."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return sorted(int(name) for name in names if name.isdecimal() and f"{name}.json" in names)


def _encode(manifest: dict) -> bytes:
    """Canonical JSON with the digest of the rest: equal manifests are equal bytes."""
    rest = json.dumps(manifest, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(rest.encode()).hexdigest()
    return json.dumps(manifest | {"digest": digest}, sort_keys=True, indent=1).encode()


def _digests(folder: epath.Path, prefix: str = "") -> dict[str, str]:
    """{name relative to the folder: sha256}; epath has no recursive glob."""
    files = {}
    for path in folder.iterdir():
        name = prefix + path.name
        files |= _digests(path, f"{name}/") if path.is_dir() else {name: _sha256(path)}
    return files


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
