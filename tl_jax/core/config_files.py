# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where configs lie, and what their files hold.

    path = find("quickstart")                          # or a .py, a .json, the folder of a run
    exp = run_python(path, Experiment)

A config in Python is run as it is: it is trusted code. Imports no JAX.
"""

import importlib.util
import json
import pathlib
from typing import TypeVar

from tl_jax.core.errors import UserError, did_you_mean, shorten

T = TypeVar("T")


def shipped() -> dict[str, pathlib.Path]:
    """The configs that come with the package, by name."""
    here = pathlib.Path(__file__).resolve().parent.parent
    for folder in (here.parent / "configs", here / "configs"):
        if (folder / "quickstart.py").exists():
            return {p.stem: p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"}
    return {}


def find(source: str) -> pathlib.Path:
    """The file of a path, of a run's folder or of a shipped config's name."""
    path = pathlib.Path(source)
    if path.is_dir() and (path / "config.json").exists():
        return path / "config.json"
    if path.suffix in (".py", ".json"):
        if path.is_file():
            return path
        raise UserError(source, "no such config file", "give a path, or one of: " + ", ".join(shipped()))
    if source in shipped():
        return shipped()[source]
    raise UserError(source, f"no such config{did_you_mean(source, shipped())}", "give a .py or .json file")


def read_json(path: pathlib.Path) -> dict:
    """The object that a file of JSON holds, each of its keys once."""

    def once(pairs):
        keys = [key for key, _ in pairs]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise UserError(str(path), f"duplicate keys {shorten(sorted(twice))}", "keep one of each")
        return dict(pairs)

    try:
        data = json.loads(path.read_text(), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(str(path), f"not JSON, {error.msg} at line {error.lineno}") from error
    if not isinstance(data, dict):
        raise UserError(str(path), f"holds a {type(data).__name__}, an object was expected")
    return data


def run_python(path: pathlib.Path, kind: type[T]) -> T:
    """What `config()` of a file of Python returns, which must be of this kind."""
    spec = importlib.util.spec_from_file_location(f"tl_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        exp = module.config()
    except UserError:
        raise
    # Whatever the user's own code fails with is told by name and file.
    except Exception as error:
        raise UserError(
            str(path), f"{type(error).__name__}: {error}", f"a config defines config() -> {kind.__name__}"
        ) from error
    if not isinstance(exp, kind):
        raise UserError(str(path), f"config() returned {type(exp).__name__}, an {kind.__name__} was expected")
    return exp
