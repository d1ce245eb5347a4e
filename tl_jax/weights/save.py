# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The published layout again: the same tensor names, files and dtypes, from the same key map read backwards.

One file's tensors are in memory at a time.
"""

import json
import math
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tl_jax.core.errors import UserError
from tl_jax.weights.files import WeightFiles
from tl_jax.weights.match import Match
from tl_jax.weights.rules import Rule, Source

MAX_BYTES = 5 * 10**9
_KEPT = (".json", ".txt", ".model")


def save(
    folder: pathlib.Path,
    params: Mapping[str, jax.Array],
    changed: Collection[str],
    config: Mapping[str, Any],
    source: Source,
    indices: list[dict[str, int]],
    base: tuple[pathlib.Path, Match | None] | None,
) -> None:
    """Write `config.json` and `*.safetensors`, all of it or nothing.

    Tensors that come to more than `MAX_BYTES` are split over several files with an index; a base of several files keeps
    its own.

    Args:
      folder: where to; made, and must be empty.
      params: all parameters by path.
      changed: paths that no longer hold the base file's values. All other tensors are copied from it, bit by bit.
      config: the content of `config.json`.
      source, indices: the layout to write parameters in that the base file does not name.
      base: folder of the weights this came from, and how they were matched, None where only the small files beside
        them are wanted; None for a network from scratch.

    Raises:
      UserError: the folder is not empty, or cannot be written to.
    """
    if folder.is_file():
        raise UserError(str(folder), "is a file", "give a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(str(folder), "is not empty", "give a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder, params, changed, config, source, indices, base)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise UserError(str(folder), f"could not be written ({error})", "see that there is room") from error
        raise


def _save(folder, params, changed, config, source, indices, base) -> None:
    files = None if base is None or base[1] is None else WeightFiles(base[0])
    several = files is not None and len(files.files) > 1
    shards = _Shards(folder, {} if files is None else files.metadata, math.inf if several else MAX_BYTES)
    last = "model.safetensors" if files is None else files.files[-1].name
    written: set[str] = set()
    rules = [rule for row in source.rules for rule in row.expand(indices)]
    rename = _renaming(source, rules, params, () if files is None else files.tensors)
    if files is not None:
        filled = {name: row for row in base[1].filled for name in row[0]}
        moved = [name for name, row in filled.items() if any(path in changed for path in row[1])]
        for name, info in files.tensors.items():
            if name in base[1].dropped:
                continue
            owner = name if name in filled else _owner(files, name, moved)
            if name in filled:
                written.update(filled[name][1])
            if owner in moved:
                names, paths, layout = filled[owner]
                tensors = layout.save(tuple(np.asarray(params[path]) for path in paths))
                shards.add(info.file.name, rename(name), tensors[names.index(owner)].astype(files.read(name).dtype))
            else:
                shards.add(info.file.name, rename(name), files.read(name))
    for rule in rules:
        if all(path in params and path not in written for path in rule.params):
            tensors = rule.layout.save(tuple(np.asarray(params[path]) for path in rule.params))
            for name, tensor in zip(rule.tensors, tensors):
                shards.add(last, name, tensor)
            written.update(rule.params)
    assert written >= set(params), f"no rule writes {sorted(set(params) - written)}"
    shards.close()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if base is not None and base[0].is_dir():
        for file in sorted(base[0].iterdir()):
            if file.suffix in _KEPT and not (folder / file.name).exists() and ".index." not in file.name:
                shutil.copyfile(file, folder / file.name)


class _Shards:
    """Weight files, each written as soon as the next begins.

    Args:
      folder: where to.
      metadata: of every file, over what readers in PyTorch ask for.
      max_bytes: where a file ends though the published one goes on; a larger tensor gets a file of its own.
    """

    def __init__(self, folder: pathlib.Path, metadata: Mapping[str, str], max_bytes: float):
        self._folder, self._metadata, self._max_bytes = folder, {"format": "pt", **metadata}, max_bytes
        self._part: dict[str, np.ndarray] = {}
        self._file, self._size, self._total = "", 0, 0
        self._done: list[tuple[str, list[str]]] = []

    def add(self, file: str, name: str, tensor: np.ndarray) -> None:
        """Put a tensor into this published file; those of one file come in a row."""
        if self._part and (file != self._file or self._size + tensor.nbytes > self._max_bytes):
            self._write()
        self._file = file
        self._part[name] = np.asarray(tensor, order="C")
        self._size += tensor.nbytes

    def close(self) -> None:
        """Give the files their names, and several an index."""
        self._write()
        names = [file for file, _ in self._done]
        if len(set(names)) < len(names):
            names = [f"model-{number:05d}-of-{len(names):05d}.safetensors" for number in range(1, len(names) + 1)]
        for number, name in enumerate(names):
            self._nameless(number).rename(self._folder / name)
        if len(names) > 1:
            places = {tensor: name for name, (_, tensors) in zip(names, self._done) for tensor in tensors}
            index = {"metadata": {"total_size": self._total}, "weight_map": places}
            (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))

    def _write(self) -> None:
        save_file(self._part, self._nameless(len(self._done)), metadata=self._metadata)
        self._done.append((self._file, sorted(self._part)))
        self._total += self._size
        self._part, self._size = {}, 0

    def _nameless(self, number: int) -> pathlib.Path:
        return self._folder / f"{number}.part"


def _owner(files: WeightFiles, name: str, moved: list[str]) -> str | None:
    """The tensor among `moved` that this one, which has no place here, repeats, or None.

    Some files hold a tied matrix under each of its names, and one left behind would untie it.
    """
    info = files.tensors[name]
    near = [other for other in moved if len(info.shape) > 1 and files.tensors[other].shape == info.shape]
    return next((other for other in near if np.array_equal(files.read(other), files.read(name))), None)


def _renaming(source: Source, rules: list[Rule], params, tensors):
    """How names of the base file are written.

    A bare backbone's names lack the prefix that they have beside a head; once there is a head, a reader that finds no
    prefix would put one before the head's names too.
    """
    known = {name for rule in rules for name in rule.tensors}
    heads = [
        rule
        for rule in rules
        if not rule.tensors[0].startswith(source.prefix)
        and rule.tensors[0] not in tensors
        and set(rule.params) <= set(params)
    ]
    bare = source.prefix and any(source.canonical(name, known) == source.prefix + name for name in tensors)
    if not heads or not bare:
        return lambda name: name

    def rename(name: str) -> str:
        canonical = source.canonical(name, known)
        return canonical if canonical in known else source.prefix + name

    return rename
