# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images in folders named after their class.

    Data("folder", path="cells")    # cells/CLASS/*.png, or cells/{train,validation,test}/CLASS/*.png

Folders inside a class folder are read too. Hidden files are skipped, and so is what lies beside the class folders
(a README, a list of labels); anything else that is no image is an error, so that nothing is lost unseen.
"""

import os
import pathlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError, shorten
from tl_jax.data import files
from tl_jax.data.decode import SUFFIXES, decode_image
from tl_jax.data.examples import Examples


@dataclass(frozen=True)
class Config:
    """
    Attributes:
      channels: 3 for RGB, 1 for grey.
      group_pattern: a regular expression with one group, searched in the relative path; what the group matches
        (a patient, a slide) never crosses a split.
    """

    channels: Literal[1, 3] = 3
    group_pattern: str | None = None


def reads(path: pathlib.Path) -> bool:
    """Whether this is of the form that `read` and `read_unlabelled` take: an image, or a folder that holds some."""
    return any(file.suffix.lower() in SUFFIXES for file in (path.rglob("*") if path.is_dir() else [path]))


def read(data: Data, options: Config) -> dict[str, Examples]:
    """The sets under `data.path`: those of the split folders, or `all`.

    Raises:
      UserError: an empty class, other classes in another split, a file that is no image, a name that cannot be
        written on one line, a link that leads out of the folder, a path without a group.
    """
    root = files.data_path(data, "a folder of class folders")
    pattern = _pattern(data, options)
    mistakes: list[str] = []
    found = {
        split: {
            folder.name: [str(path.relative_to(root).as_posix()) for path in _images(folder, root, mistakes)]
            for folder in _folders(base, root, mistakes)
        }
        for split, base in _layout(root).items()
    }
    classes = sorted(set().union(*found.values()))
    for split, members in found.items():
        at = "" if split == "all" else f"{split}/"
        mistakes += [f"{at}{name!r} holds no image" for name in sorted(members) if not members[name]]
        absent = [name for name in classes if name not in members]
        if absent:
            mistakes.append(f"{split} has no folder for {shorten(map(repr, absent))}")
    if not classes:
        mistakes.append("holds no class folders")
    groups = {
        name: _group(pattern, name, mistakes) for sets in found.values() for names in sets.values() for name in names
    }
    if mistakes:
        raise UserError(str(root), shorten(mistakes), "every class needs a folder of images in every split")
    return {split: _examples(root, members, classes, groups, options) for split, members in found.items()}


def read_unlabelled(path: str | pathlib.Path, options: Config) -> Examples:
    """Images without labels, for prediction: one file, or every image under a folder.

    Raises:
      UserError: nothing there, no image, or a file that is none.
    """
    path = files.existing(path, "an image or a folder of images")
    root, mistakes = (path, []) if path.is_dir() else (path.parent, [])
    names = (
        [str(p.relative_to(root).as_posix()) for p in _images(path, root, mistakes)] if path.is_dir() else [path.name]
    )
    if not names:
        mistakes.append("holds no image")
    if mistakes:
        raise UserError(str(path), shorten(mistakes), "leave only images there")
    return Examples(_fetch(root, names, options), names, kind="image")


def _examples(root, members: dict[str, list[str]], classes: list[str], groups: dict[str, str], options) -> Examples:
    names = [name for label in classes for name in members[label]]
    labels = np.repeat(np.arange(len(classes)), [len(members[label]) for label in classes])
    return Examples(
        _fetch(root, names, options),
        names,
        kind="image",
        classes=classes,
        labels=labels.astype(np.int64),
        groups=[groups[name] for name in names] if options.group_pattern else None,
        file=lambda index: root / names[index],
    )


def _fetch(root: pathlib.Path, names: list[str], options: Config):
    def fetch(index: int) -> dict:
        path = root / names[index]
        return {"image": decode_image(path, str(path), options.channels)}

    return fetch


def _layout(root: pathlib.Path) -> dict[str, pathlib.Path]:
    if not root.is_dir():
        raise UserError(str(root), "is a file, a folder of class folders was expected", "set data.path to the folder")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    named = [p for p in folders if p.name.lower() in files.SPLITS]
    if not named or (len(named) < len(folders) and "train" not in {p.name.lower() for p in named}):
        return {"all": root}
    layout: dict[str, pathlib.Path] = {}
    wrong = [repr(p.name) for p in folders if p not in named]
    for folder in named:
        if layout.setdefault(files.SPLITS[folder.name.lower()], folder) != folder:
            wrong.append(repr(folder.name))
    if wrong:
        raise UserError(
            str(root), f"{shorten(wrong)} beside train/: splits are train, validation and test, once each", "rename it"
        )
    return {split: layout[split] for split in ("train", "validation", "test") if split in layout}


def _folders(base: pathlib.Path, root: pathlib.Path, mistakes: list[str]) -> list[pathlib.Path]:
    folders = []
    for path in sorted(base.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and _sound(path, root, mistakes):
            folders.append(path)
        elif path.suffix.lower() in SUFFIXES:
            mistakes.append(f"{path.name!r} lies beside the class folders")
    return folders


def _images(folder: pathlib.Path, root: pathlib.Path, mistakes: list[str]) -> list[pathlib.Path]:
    images = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = pathlib.Path(entry.path)
        if entry.name.startswith(".") or not _sound(path, root, mistakes):
            continue
        if entry.is_dir():
            images += _images(path, root, mistakes)
        elif path.suffix.lower() not in SUFFIXES or not entry.is_file():
            mistakes.append(f"{str(path.relative_to(root))!r} is no image")
        else:
            images.append(path)
    return images


def _sound(path: pathlib.Path, root: pathlib.Path, mistakes: list[str]) -> bool:
    """Whether the name can stand in a report and a file list, and the file is one of this folder's."""
    name = str(path.relative_to(root))
    if path.name.startswith("-") or not path.name.isprintable():
        mistakes.append(f"{ascii(name)} has a name that begins with '-' or cannot be printed")
        return False
    if path.is_symlink() and (path.is_dir() or files.leads_out(path, root)):
        mistakes.append(f"{name!r} is a link to a folder or out of the data")
        return False
    return True


def _pattern(data: Data, options: Config) -> re.Pattern | None:
    if options.group_pattern is None:
        if data.group is not None:
            raise UserError("data.group", "image folders have no fields", "give data.options.group_pattern instead")
        return None
    try:
        pattern = re.compile(options.group_pattern)
    except re.error as error:
        raise UserError("data.options.group_pattern", f"{options.group_pattern!r}: {error}") from error
    if pattern.groups != 1:
        raise UserError("data.options.group_pattern", f"has {pattern.groups} groups, one was expected")
    return pattern


def _group(pattern: re.Pattern | None, name: str, mistakes: list[str]) -> str:
    if pattern is None:
        return ""
    match = pattern.search(name)
    if match is None or match.group(1) is None:
        mistakes.append(f"{name!r} does not match data.options.group_pattern")
        return ""
    return match.group(1)
