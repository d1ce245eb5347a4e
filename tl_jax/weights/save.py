# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The published layout again: the same tensor names, files and dtypes, from the same key map read backwards."""

import json
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from tl_jax.core.errors import UserError
from tl_jax.weights.files import WeightFiles
from tl_jax.weights.match import Match
from tl_jax.weights.rules import Rule, Source

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
    """Write `config.json` and `*.safetensors`.

    Args:
      folder: where to; made, and must be empty.
      params: all parameters by path.
      changed: paths that no longer hold the base file's values. All other tensors are copied from it, bit by bit.
      config: the content of `config.json`.
      source, indices: the layout to write parameters in that the base file does not name.
      base: folder of the weights this came from, and how they were matched, None where only the small files beside
        them are wanted; None for a network from scratch.

    Raises:
      UserError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(str(folder), "is not empty", "give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = None if base is None or base[1] is None else WeightFiles(base[0])
    shards: dict[str, dict[str, np.ndarray]] = {}
    written: set[str] = set()
    rules = [rule for row in source.rules for rule in row.expand(indices)]
    rename = _renaming(source, rules, params, () if files is None else files.tensors)
    if files is not None:
        filled = {name: row for row in base[1].filled for name in row[0]}
        for name, info in files.tensors.items():
            if name in base[1].dropped:
                continue
            shard = shards.setdefault(info.file.name, {})
            if name in filled:
                written.update(filled[name][1])
            if name in filled and any(path in changed for path in filled[name][1]):
                names, paths, layout = filled[name]
                tensors = layout.save(tuple(np.asarray(params[path]) for path in paths))
                old = files.read(name)
                shard[rename(name)] = np.ascontiguousarray(tensors[names.index(name)].astype(old.dtype))
            else:
                shard[rename(name)] = files.read(name)
    new = shards.setdefault(list(shards)[-1] if shards else "model.safetensors", {})
    for rule in rules:
        if all(path in params and path not in written for path in rule.params):
            tensors = rule.layout.save(tuple(np.asarray(params[path]) for path in rule.params))
            new.update({name: np.ascontiguousarray(tensor) for name, tensor in zip(rule.tensors, tensors)})
            written.update(rule.params)
    assert written >= set(params), f"no rule writes {sorted(set(params) - written)}"
    metadata = {"format": "pt", **(files.metadata if files is not None else {})}
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata=metadata)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for tensors in shards.values() for t in tensors.values())},
            "weight_map": {name: file for file, tensors in shards.items() for name in sorted(tensors)},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if base is not None and base[0].is_dir():
        for file in sorted(base[0].iterdir()):
            if file.suffix in _KEPT and not (folder / file.name).exists() and ".index." not in file.name:
                shutil.copyfile(file, folder / file.name)


def _renaming(source: Source, rules: list[Rule], params, tensors):
    """How names of the base file are written.

    A bare backbone's names lack the prefix that they have beside a head; once there is a head, a reader that finds no
    prefix would put one before the head's names too.
    """
    known = {name for rule in rules for name in rule.tensors}
    heads = [
        rule for rule in rules if not rule.tensors[0].startswith(source.prefix) and set(rule.params) <= set(params)
    ]
    bare = source.prefix and any(source.canonical(name, known) == source.prefix + name for name in tensors)
    if not heads or not bare:
        return lambda name: name

    def rename(name: str) -> str:
        canonical = source.canonical(name, known)
        return canonical if canonical in known else source.prefix + name

    return rename
