# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Imports point one way: the table of the layers, and who breaks it, by file and line."""

import ast
import pathlib

import pytest

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "tl_jax"

_BASE = ("core", "config")
_TRAIN = (*_BASE, "plan", "parallel", "train")
_BELOW = (*_TRAIN, "nn", "weights", "models", "data", "tasks")
# What a folder may import beside itself; modules at the top may import all.
_MAY = {
    "core": (),
    "config": ("core",),
    "nn": _BASE,
    "weights": _BASE,
    "data": _BASE,
    "parallel": _BASE,
    "models": (*_BASE, "nn", "weights.rules"),
    "plan": (*_BASE, "nn"),
    "tasks": (*_BASE, "nn", "data.images", "data.texts"),
    "train": _TRAIN,
    "transfer": _BELOW,
    "report": _BELOW,
    "bench": ("",),
}


def imported(source: str):
    """(line, module within tl_jax) of every import, lazy ones inside functions too, and of every dotted name that a
    plug-in could be loaded by; "" is the package itself."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["tl_jax"] if node.level else [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("tl_jax."):
            names = [node.value] if all(part.isidentifier() for part in node.value.split(".")) else []
        for name in names:
            if name.split(".")[0] == "tl_jax":
                yield node.lineno, name.removeprefix("tl_jax").removeprefix(".")


def violations(layer: str, source: str, file: str) -> list[str]:
    """'tl_jax/train/step.py:20 imports tl_jax.models.bert': everything that the layer may not see."""

    def allowed(name):
        return any(f"{name}.".startswith(f"{prefix}." if prefix else "") for prefix in (layer, *_MAY[layer]))

    return [f"{file}:{line} imports tl_jax.{name}" for line, name in imported(source) if not allowed(name)]


def test_no_import_points_back():
    """Every module of every folder keeps to the table."""
    found = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        inside = path.relative_to(_PACKAGE)
        layer = inside.parts[0] if len(inside.parts) > 1 else inside.stem
        if len(inside.parts) > 1 or layer in _MAY:
            found += violations(layer, path.read_text(), f"tl_jax/{inside}")
    assert not found, "\n".join(found)


def test_every_folder_has_a_layer():
    """A new folder must say where it stands."""
    folders = {path.parent.relative_to(_PACKAGE).parts[0] for path in _PACKAGE.glob("*/*.py")}
    assert folders - {"configs"} <= set(_MAY)
    assert {"core", "nn", "weights", "data", "parallel", "models", "plan", "tasks", "train", "report"} <= folders


@pytest.mark.parametrize(
    "layer,source,expected",
    [
        ("train", "import jax\nfrom tl_jax.models import bert", ["x.py:2 imports tl_jax.models.bert"]),
        ("train", "def f():\n    import tl_jax.tasks.classification", ["x.py:2 imports tl_jax.tasks.classification"]),
        ("plan", "from tl_jax import config, engine", ["x.py:1 imports tl_jax.engine"]),
        ("core", "from . import engine", ["x.py:1 imports tl_jax."]),
        ("models", "from tl_jax.weights.rules import Rule\nfrom tl_jax.weights.files import WeightFiles",
         ["x.py:2 imports tl_jax.weights.files.WeightFiles"]),
        ("data", "find('tl_jax.models', name)", ["x.py:1 imports tl_jax.models"]),
        ("plan", "from tl_jax.plan import cut\nfrom tl_jax.core.chain import EVAL", []),
        ("data", "log = logging.getLogger('tl_jax')\nfrom tl_jaxon import x", []),
        ("bench", "from tl_jax import engine", []),
    ],
)  # fmt: skip
def test_the_check_finds_what_it_looks_for(layer, source, expected):
    """Ways to reach over a layer, and ways that only look like it."""
    assert violations(layer, source, "x.py") == expected
