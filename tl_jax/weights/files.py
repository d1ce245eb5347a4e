# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Published weight files: safetensors, one file or several with an index, read one tensor at a time.

    files = WeightFiles(pathlib.Path("vit-base"))
    files.tensors["vit.embeddings.cls_token"]     # TensorInfo(file, "F32", (1, 1, 768))
    files.read("vit.embeddings.cls_token")        # a NumPy array

Only the `safetensors` package reads the format: it checks every offset. A pickle is never opened.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import safetensors

from tl_jax.core.errors import UserError, shorten

_READABLE = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLED = ((b"PK", "a zip archive, as PyTorch writes pickles"), (b"\x80", "a pickle"))
_OTHER = (
    (b"\x93NUMPY", "a NumPy file", "give the safetensors file"),
    (b"\x89HDF", "an HDF5 file", "give the safetensors file"),
    (b"version https://", "a git-lfs pointer, not the file that it stands for", "run: git lfs pull"),
)


class TensorInfo(NamedTuple):
    """Where a tensor is, its dtype in the format's letters, and its shape."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]


class WeightFiles:
    """The tensors of a folder (or of one file) by name; nothing is read but the headers.

    Raises:
      UserError: no weights there, a pickle, a broken or truncated file, shards that contradict their index.
    """

    def __init__(self, path: pathlib.Path):
        self.files = _find(path)
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            with _open(file) as handle:
                self.metadata.update(handle.metadata() or {})
                for name in handle.keys():
                    if name in self.tensors:
                        raise UserError(str(file), f"tensor {name!r} is also in {self.tensors[name].file.name}")
                    part = handle.get_slice(name)
                    self.tensors[name] = TensorInfo(file, part.get_dtype(), tuple(part.get_shape()))
            _refuse_duplicates(file)
        unreadable = [f"{name} ({info.dtype})" for name, info in self.tensors.items() if info.dtype not in _READABLE]
        if unreadable:
            raise UserError(str(path), f"dtypes not supported: {shorten(unreadable)}", "convert them to BF16 first")

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the file's dtype (bfloat16 as ml_dtypes has it)."""
        info = self.tensors[name]
        with _open(info.file) as handle:
            return handle.get_tensor(name)

    def read_all(self, names: list[tuple[str, ...]]) -> Iterator[tuple[np.ndarray, ...]]:
        """The tensors of each group in turn; every file is opened once."""
        with contextlib.ExitStack() as stack:
            handles: dict[pathlib.Path, safetensors.safe_open] = {}
            for group in names:
                for file in (self.tensors[name].file for name in group):
                    if file not in handles:
                        handles[file] = stack.enter_context(_open(file))
                yield tuple(handles[self.tensors[name].file].get_tensor(name) for name in group)

    def digest(self) -> str:
        """sha256 over the contents of all files, in order of their names."""
        total = hashlib.sha256()
        for file in self.files:
            with open(file, "rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


def _find(path: pathlib.Path) -> list[pathlib.Path]:
    """The weight files of a folder, or the file itself."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(str(path), "no such file or folder", "give a folder with config.json and *.safetensors")
    indices = sorted(path.glob("*.safetensors.index.json"))
    if indices:
        return _from_index(indices[0])
    found = sorted(path.glob("*.safetensors"))
    if (path / "model.safetensors") in found:
        return [path / "model.safetensors"]
    if len(found) == 1:
        return found
    if found:
        names = shorten([file.name for file in found])
        raise UserError(str(path), f"several weight files and no index: {names}", "give the path of one of them")
    pickles = [file for file in sorted(path.iterdir()) if file.suffix in _PICKLES]
    if pickles:
        raise _pickle_error(pickles[0], "a pickle")
    raise UserError(str(path), "holds no *.safetensors file")


def _from_index(index: pathlib.Path) -> list[pathlib.Path]:
    try:
        names = json.loads(index.read_text())["weight_map"]
        shards = sorted({str(shard) for shard in names.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(str(index), "no index with a weight_map of tensor names to files") from error
    outside = [shard for shard in shards if pathlib.PurePath(shard).name != shard]
    if outside:
        raise UserError(str(index), f"names files outside its folder: {shorten(map(repr, outside))}")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise UserError(str(index), f"names files that are not there: {shorten(missing)}", "download them again")
    for shard in shards:
        with _open(index.parent / shard) as handle:
            here = set(handle.keys())
        wrong = here.symmetric_difference(name for name, file in names.items() if file == shard)
        if wrong:
            raise UserError(str(index), f"and {shard} do not agree on {shorten(sorted(wrong))}", "download them again")
    return [index.parent / shard for shard in shards]


def _open(file: pathlib.Path):
    if not file.is_file():
        raise UserError(str(file), "no such file")
    with open(file, "rb") as stream:
        head = stream.read(16)
    # A safetensors header starts with its length: eight bytes, little endian, then '{'.
    if head[8:9] != b"{":
        for magic, what in _PICKLED:
            if head.startswith(magic):
                raise _pickle_error(file, what)
        for magic, what, do in _OTHER:
            if head.startswith(magic):
                raise UserError(str(file), f"is {what}; safetensors was expected", do)
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        reason = str(error).replace("Error while deserializing header: ", "")
        raise UserError(
            str(file), f"no readable safetensors file, {file.stat().st_size} bytes ({reason})", "download it again"
        ) from error


def _pickle_error(file: pathlib.Path, what: str) -> UserError:
    return UserError(
        str(file),
        f"is {what}, which can run code when it is read; safetensors was expected",
        f"convert it once: python launch.py convert --from-torch={file} --to=DIR",
    )


def _refuse_duplicates(file: pathlib.Path) -> None:
    """The package accepts a name that stands twice in a header and keeps the last one."""

    def once(pairs):
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = sorted({key for key in keys if keys.count(key) > 1})
            raise UserError(str(file), f"tensor names stand twice: {shorten(twice)}", "download it again")
        return dict(pairs)

    with open(file, "rb") as stream:
        json.loads(stream.read(int.from_bytes(stream.read(8), "little")), object_pairs_hook=once)
