# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images and labels as arrays in one `.npz` file.

    Data("npz", path="fashion_mnist/data.npz")

The file holds `x_train, y_train, x_test, y_test` and perhaps `x_val, y_val`, or `x, y` unsplit. A `classes.json` beside
it (a list of names, or an object from label to name) names the classes. Pickled arrays are refused.
"""

import json
import pathlib
import zipfile
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError, shorten
from tl_jax.data import files
from tl_jax.data.decode import with_channels
from tl_jax.data.examples import Examples

_SUFFIXES = {"all": "", "train": "_train", "validation": "_val", "test": "_test"}


@dataclass(frozen=True)
class Config:
    """
    Attributes:
      channels: 3 repeats grey images to RGB, 1 keeps or makes them grey.
    """

    channels: Literal[1, 3] = 3


def reads(path: pathlib.Path) -> bool:
    """Whether this is of the form that `read` takes."""
    return path.suffix.lower() == ".npz"


def read(data: Data, options: Config) -> dict[str, Examples]:
    """The sets of the file; `data.group` names further arrays, `{group}_train` and so on.

    Raises:
      UserError: no such arrays, images that are not uint8[N, H, W] or uint8[N, H, W, 1 or 3], labels that are not
        whole numbers in range (the first bad row is named), a class name too few.
    """
    path = files.data_path(data, "an .npz file")
    arrays = _load(path)
    splits = [split for split, suffix in _SUFFIXES.items() if f"x{suffix}" in arrays and f"y{suffix}" in arrays]
    if not splits or ("all" in splits and len(splits) > 1):
        raise UserError(
            str(path), f"holds {shorten(arrays)}", "it needs x_train, y_train, x_test, y_test, or x and y alone"
        )
    mistakes: list[str] = []
    images, labels, groups = {}, {}, {}
    for split in splits:
        x, y = f"x{_SUFFIXES[split]}", f"y{_SUFFIXES[split]}"
        images[split] = _images(x, arrays[x], mistakes)
        labels[split] = _labels(y, arrays[y], mistakes)
        if len(arrays[x]) != len(arrays[y]):
            mistakes.append(f"{x} has {len(arrays[x])} rows, {y} {len(arrays[y])}")
        if data.group is not None:
            name = f"{data.group}{_SUFFIXES[split]}"
            groups[split] = [str(value) for value in arrays.get(name, ())]
            if len(groups[split]) != len(arrays[x]):
                mistakes.append(f"{name} has {len(groups[split])} rows, {x} {len(arrays[x])}")
    if mistakes:
        raise UserError(str(path), "; ".join(mistakes))
    classes = _classes(path.parent / "classes.json", path, splits, labels)
    return {
        split: _examples(split, images[split], labels[split], groups.get(split), classes, options) for split in splits
    }


def _examples(split, images, labels, groups, classes, options) -> Examples:
    return Examples(
        lambda i: {"image": with_channels(images[i], options.channels)},
        [f"{split}/{row}" for row in range(len(images))],
        kind="image",
        classes=classes,
        labels=labels.astype(np.float32 if labels.ndim == 2 else np.int64),
        groups=groups,
    )


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # Given a path, np.load leaves the file of a broken archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        reason = "holds pickled objects" if "allow_pickle" in str(error) else "is not a readable .npz file"
        raise UserError(str(path), reason, "write it with numpy.savez from plain arrays") from error


def _images(name: str, x: np.ndarray, mistakes: list[str]) -> np.ndarray:
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape[1:]:
        hint = " (channels come last)" if x.ndim == 4 and x.shape[1] in (1, 3) else ""
        shape = ", ".join(map(str, x.shape))
        mistakes.append(f"{name} is {x.dtype}[{shape}], uint8[N, H, W] or uint8[N, H, W, 1 or 3] was expected{hint}")
    return x


def _labels(name: str, y: np.ndarray, mistakes: list[str]) -> np.ndarray:
    """int[N], or int[N, C] of zeros and ones; published [N, 1] labels lose that axis."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim not in (1, 2) or y.dtype.kind not in "iufb":
        mistakes.append(f"{name} is {y.dtype} of {y.ndim} dimensions, whole numbers [N] or 0/1 [N, C] were expected")
        return np.zeros(len(y) if y.ndim else 0, np.int64)
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(y) | (y != np.floor(y)) if y.dtype.kind == "f" else np.zeros(y.shape, bool)
    bad |= (y < 0) | ((y > 1) if y.ndim == 2 else False)
    if bad.any():
        row = np.argwhere(bad)[0]
        mistakes.append(
            f"{name} row {row[0]} is {y[tuple(row)]}, {int(bad.sum())} such labels, {_expected(y)} was expected"
        )
    elif y.dtype.kind == "f":
        mistakes.append(f"{name} is {y.dtype}, whole numbers were expected (row 0 is {y.flat[0]})" if y.size else name)
    return y


def _expected(y: np.ndarray) -> str:
    return "0 or 1" if y.ndim == 2 else "a whole number from 0"


def _classes(file: pathlib.Path, path: pathlib.Path, splits: list[str], labels: dict[str, np.ndarray]) -> list[str]:
    if len({y.shape[1:] for y in labels.values()}) > 1:
        raise UserError(str(path), "labels have another shape in another split", "write them alike")
    many = labels[splits[0]].ndim == 2
    needed = labels[splits[0]].shape[1] if many else 1 + max(int(y.max(initial=-1)) for y in labels.values())
    if not file.exists():
        return [str(i) for i in range(needed)]
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(names, dict):
            names = [names[str(i)] for i in range(len(names))]
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
            raise ValueError("names must be different texts")
    except (ValueError, KeyError) as error:
        raise UserError(
            str(file), f"is no list of class names ({error})", 'write ["cat", "dog"] or {"0": "cat", "1": "dog"}'
        ) from error
    if many and len(names) != needed or needed > len(names):
        where = ""
        if not many:
            split, row = next(
                (s, int(np.argmax(y >= len(names)))) for s, y in labels.items() if (y >= len(names)).any()
            )
            where = f"y{_SUFFIXES[split]} row {row}: "
        raise UserError(
            str(path), f"{where}labels up to {needed - 1}, {file.name} names {len(names)} classes", "add the names"
        )
    return names
