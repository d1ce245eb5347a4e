# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the sources that read files share: where the data is, and how splits are called.

path = data_path(data, "a folder of class folders")
"""

import pathlib

from tl_jax.config import Data
from tl_jax.core.errors import UserError

# Folder or file name -> split.
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def data_path(data: Data, expected: str) -> pathlib.Path:
    """`data.path`, which must exist; `expected` says what it is to be."""
    if not data.path:
        raise UserError("data.path", f"is not set, {expected} was expected", "set data.path")
    return existing(data.path, expected)


def existing(path: str | pathlib.Path, expected: str) -> pathlib.Path:
    """`path`, which must exist; `expected` says what it is to be."""
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise UserError(str(path), f"not found, {expected} was expected", "check the path")
    return path


def leads_out(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether `path`, once its links are followed, lies outside of `root`."""
    return not path.resolve().is_relative_to(root.resolve())
