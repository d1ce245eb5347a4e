# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The demonstration texts: docstrings of the installed SciPy, to be told apart by subpackage; no download.

    Data("docstrings")    # which of stats, signal, linalg, ... does this function belong to?

What would give the answer away is masked: subpackage names, module paths, the function's own name, import lines.
A function that is in two subpackages, by object, name or text, is left out. The texts are those of the SciPy that is
installed, so another version gives other counts.
"""

import importlib
import inspect
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError, did_you_mean
from tl_jax.data.examples import Examples

# Class -> its public modules; the order decides under which path a function is known that has several.
_MODULES = {
    "cluster": ("cluster.hierarchy", "cluster.vq"),
    "fft": ("fft",),
    "integrate": ("integrate",),
    "interpolate": ("interpolate",),
    "linalg": ("linalg",),
    "ndimage": ("ndimage",),
    "optimize": ("optimize",),
    "signal": ("signal", "signal.windows"),
    "sparse": ("sparse", "sparse.linalg", "sparse.csgraph"),
    "spatial": ("spatial", "spatial.distance", "spatial.transform"),
    "special": ("special",),
    "stats": ("stats", "stats.qmc", "stats.contingency", "stats.mstats"),
}
_MIN_CLASS = 40
_TOLD = frozenset(("scipy", "fftpack", *_MODULES))
_PATH = re.compile(r"\w+(?:\.\w+)*")
_IMPORT = re.compile(r"\s*(>>>|\.\.\.)\s.*\bimport\b")


@dataclass(frozen=True)
class Config:
    """
    Attributes:
      classes: the subpackages to tell apart; when empty, all with at least 40 usable docstrings.
      min_chars: shorter docstrings are left out.
    """

    classes: tuple[str, ...] = ()
    min_chars: int = 200


def read(data: Data, options: Config) -> dict[str, Examples]:
    """`all`, in the order of the keys, which are names such as `scipy.stats.norm`.

    Raises:
      UserError: SciPy is missing, a class is no subpackage or has fewer than 40 usable docstrings.
    """
    unknown = [name for name in options.classes if name not in _MODULES]
    if unknown:
        raise UserError("data.options.classes", f"{unknown[0]!r} is not there{did_you_mean(unknown[0], _MODULES)}")
    if data.group is not None:
        raise UserError("data.group", "docstrings has no fields to group by", "remove it")
    texts = _unambiguous(_collect())
    counts = defaultdict(int)
    texts = {key: (label, text) for key, (label, text) in texts.items() if len(text) >= options.min_chars}
    for label, _ in texts.values():
        counts[label] += 1
    few = [f"{name} ({counts[name]})" for name in options.classes if counts[name] < _MIN_CLASS]
    if few:
        raise UserError(
            "data.options.classes", f"fewer than {_MIN_CLASS} usable docstrings: {', '.join(few)}", "leave it out"
        )
    classes = sorted(options.classes or (name for name in counts if counts[name] >= _MIN_CLASS))
    keys = sorted(key for key, (label, _) in texts.items() if label in classes)
    examples = Examples(
        lambda i: {"text": texts[keys[i]][1]},
        keys,
        kind="text",
        classes=classes,
        labels=np.array([classes.index(texts[key][0]) for key in keys], np.int64),
    )
    return {"all": examples}


def _collect() -> list[tuple[str, str, object]]:
    """(class, path, function) of every public callable with a docstring of its own."""
    found = []
    for label, modules in _MODULES.items():
        for module in modules:
            try:
                loaded = importlib.import_module(f"scipy.{module}")
            except ImportError as error:
                raise UserError("data.source", f"docstrings needs scipy.{module}", "run: pip install scipy") from error
            for name in sorted(loaded.__all__):
                value = getattr(loaded, name)
                doc = getattr(value, "__doc__", None)
                if callable(value) and isinstance(doc, str) and doc != type(value).__doc__:
                    found.append((label, f"scipy.{module}.{name}", value))
    return found


def _unambiguous(found: list[tuple[str, str, object]]) -> dict[str, tuple[str, str]]:
    """Path -> (class, masked text), each function, name and text in one class and there once."""
    marks = [(id(value), path.rpartition(".")[2], _mask(value.__doc__, path)) for _, path, value in found]
    classes_of, seen, kept = defaultdict(set), set(), {}
    for (label, _, _), mark in zip(found, marks):
        for part in mark:
            classes_of[part].add(label)
    for (label, path, _), mark in zip(found, marks):
        if all(len(classes_of[part]) == 1 for part in mark) and seen.isdisjoint(mark):
            seen.update(mark)
            kept[path] = (label, mark[2])
    return kept


def _mask(doc: str, path: str) -> str:
    """The text with `_` for every dotted path that holds a subpackage's name or the function's own."""
    own = path.rpartition(".")[2]

    def masked(match: re.Match) -> str:
        word = match[0]
        parts = word.lower().replace("_", ".").split(".")
        return "_" if not _TOLD.isdisjoint(parts) or own in word.split(".") else word

    lines = (line for line in inspect.cleandoc(doc).splitlines() if not _IMPORT.match(line))
    return " ".join(_PATH.sub(masked, "\n".join(lines)).split())
