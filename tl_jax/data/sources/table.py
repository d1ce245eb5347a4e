# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Texts or images listed in a table: `.tsv`, `.csv` or `.jsonl`.

    Data("table", path="sst2", options={"text": "sentence", "label": "stars"})

`data.path` is one file (unsplit) or a folder with `train.tsv`, `dev.tsv` (or `validation`, `val`) and `test.tsv`, or
the same in another format. UTF-8, a header line first, one record a line; a record's key is `file:line`.
"""

import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError, shorten
from tl_jax.data import files, rows
from tl_jax.data.decode import decode_image
from tl_jax.data.examples import Examples


@dataclass(frozen=True)
class Config:
    """
    Attributes:
      text: the column of texts.
      label: the column of labels; None for texts without any, such as a language model learns from.
      image: the column of image paths, relative to the file; then the records are images and `text` is not read.
      separator: what parts several labels in one cell; then an empty cell means that no class holds.
      quoting: whether `"` quotes cells; None for no in a TSV and yes in a CSV.
      classes: the class names in order; when empty, all that occur, sorted (whole numbers by value). Labels may be
        these names or, where none of them is one, whole numbers from 0.
      channels: of images: 3 for RGB, 1 for grey.
    """

    text: str = "text"
    label: str | None = "label"
    image: str | None = None
    separator: str | None = None
    quoting: bool | None = None
    classes: tuple[str, ...] = ()
    channels: Literal[1, 3] = 3


def reads(path: pathlib.Path) -> bool:
    """Whether this is of the form that `read` takes."""
    return rows.holds(path)


def read(data: Data, options: Config) -> dict[str, Examples]:
    """The sets of the file (`all`) or of the folder's files.

    Raises:
      UserError: no such column, a row of another length, an empty text or label, not UTF-8, an unknown label, an
        image that is not there, a class that occurs only outside of train.
    """
    path = files.data_path(data, "a .tsv, .csv or .jsonl file, or a folder of them")
    tables = {split: rows.read(file, options.quoting) for split, file in _layout(path).items()}
    mistakes: list[str] = []
    contents = {split: _contents(table, options, mistakes) for split, table in tables.items()}
    groups = {split: _groups(table, data.group, mistakes) for split, table in tables.items()}
    if options.label is None:
        if mistakes:
            raise UserError(str(path), shorten(mistakes), "mend these rows")
        return {split: _examples(table, contents[split], options, groups[split]) for split, table in tables.items()}
    found = {split: _labels(table, options, mistakes) for split, table in tables.items()}
    classes, index_of = _classes(found, options)
    for split, table in tables.items():
        for line, names in zip(table.lines, found[split]):
            mistakes += [f"{table.name}:{line} has label {name!r}" for name in names if name not in index_of]
    if "train" in found:
        known = {name for names in found["train"] for name in names}
        for split in found:
            extra = sorted({name for names in found[split] for name in names} - known)
            if extra:
                mistakes.append(f"{tables[split].name} has classes that train lacks: {shorten(map(repr, extra))}")
    if mistakes:
        hint = f"the classes are {shorten(classes, 20)}" if options.classes else "mend these rows"
        raise UserError(str(path), shorten(mistakes), hint)
    many = options.separator is not None
    return {
        split: _examples(
            table,
            contents[split],
            options,
            groups[split],
            classes=classes,
            labels=_encode(found[split], index_of, len(classes), many),
        )
        for split, table in tables.items()
    }


def read_unlabelled(path: str | pathlib.Path, options: Config) -> Examples:
    """Records without labels, for prediction: a table whose label column, if any, is not read, or a `.txt` file with
    one text a line.

    Raises:
      UserError: as `read`, labels apart.
    """
    table = rows.read(files.existing(path, "a .txt, .tsv, .csv or .jsonl file"), options.quoting, options.text)
    mistakes: list[str] = []
    contents = _contents(table, options, mistakes)
    if mistakes:
        raise UserError(str(path), shorten(mistakes), "mend these rows")
    return _examples(table, contents, options)


def _layout(path: pathlib.Path) -> dict[str, pathlib.Path]:
    if path.is_file():
        return {"all": path}
    layout: dict[str, pathlib.Path] = {}
    for file in sorted(path.iterdir()):
        split = files.SPLITS.get(file.stem.lower())
        if split and file.suffix.lower() in rows.TABLES and layout.setdefault(split, file) != file:
            raise UserError(str(path), f"{layout[split].name} and {file.name} are both the {split} split", "keep one")
    if "train" not in layout:
        raise UserError(str(path), "holds no train.tsv, train.csv or train.jsonl", "rename the file, or give its path")
    return {split: layout[split] for split in ("train", "validation", "test") if split in layout}


def _contents(table: rows.Table, options: Config, mistakes: list[str]) -> list[str]:
    """The text, or the image path, of every row."""
    cells = table.column(options.image or options.text)
    for line, cell in zip(table.lines, cells):
        if not isinstance(cell, str) or not cell.strip():
            mistakes.append(f"{table.name}:{line} has no {'image path' if options.image else 'text'}")
        elif options.image:
            file = table.path.parent / cell
            if files.leads_out(file, table.path.parent) or not file.is_file():
                mistakes.append(f"{table.name}:{line} names {cell!r}, no file beside the table")
    return cells


def _labels(table: rows.Table, options: Config, mistakes: list[str]) -> list[list[str]]:
    """The label names of every row: one, or any number where labels are separated."""
    labels = []
    for line, cell in zip(table.lines, table.column(options.label)):
        if isinstance(cell, float | dict) or (isinstance(cell, list) and options.separator is None):
            mistakes.append(f"{table.name}:{line} has label {cell!r}, a name or a whole number was expected")
            cell = ""
        elif (cell is None or not str(cell).strip()) and options.separator is None:
            mistakes.append(f"{table.name}:{line} has no label")
            cell = ""
        if options.separator is None:
            names = [str(cell)]
        else:
            names = cell if isinstance(cell, list) else str("" if cell is None else cell).split(options.separator)
        labels.append([name for name in (str(name).strip() for name in names) if name])
    return labels


def _groups(table: rows.Table, name: str | None, mistakes: list[str]) -> list[str] | None:
    if name is None:
        return None
    groups = ["" if cell is None else str(cell).strip() for cell in table.column(name)]
    mistakes += [f"{table.name}:{line} has no {name}" for line, group in zip(table.lines, groups) if not group]
    return groups


def _classes(found: dict[str, list[list[str]]], options: Config) -> tuple[list[str], dict[str, int]]:
    names = {name for labels in found.values() for row in labels for name in row}
    numeric = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    if not options.classes:
        classes = sorted(names, key=int) if numeric else sorted(names)
        return classes, {name: i for i, name in enumerate(classes)}
    classes = list(options.classes)
    if numeric and names.isdisjoint(classes):
        return classes, {str(i): i for i in range(len(classes))}
    return classes, {name: i for i, name in enumerate(classes)}


def _encode(labels: list[list[str]], index_of: dict[str, int], num_classes: int, many: bool) -> np.ndarray:
    if not many:
        return np.array([index_of[names[0]] for names in labels], np.int64)
    encoded = np.zeros((len(labels), num_classes), np.float32)
    for row, names in enumerate(labels):
        encoded[row, [index_of[name] for name in names]] = 1
    return encoded


def _examples(table: rows.Table, contents: list[str], options: Config, groups=None, **labelled) -> Examples:
    keys = [f"{table.name}:{line}" for line in table.lines]
    kind = "image" if options.image else "text"
    file = (lambda index: table.path.parent / contents[index]) if options.image else None
    return Examples(_fetch(table, contents, options), keys, kind=kind, groups=groups, file=file, **labelled)


def _fetch(table: rows.Table, contents: Sequence[str], options: Config):
    if options.image is None:
        return lambda i: {"text": contents[i]}
    folder = table.path.parent
    return lambda i: {"image": decode_image(folder / contents[i], str(folder / contents[i]), options.channels)}
