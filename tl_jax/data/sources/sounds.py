# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sounds listed in a table, with a class or a transcript each.

    Data("sounds", path="fsdd", options={"label": "label"})
    Data("sounds", path="lj_speech", options={"text": "transcript"})

`data.path` is a `.tsv`, `.csv` or `.jsonl` file (unsplit), or a folder with `train`, `dev` (or `validation`, `val`) and
`test` in one of these formats; paths of sounds are relative to it. Transcripts become rows of whole numbers: 0 fills
up, 1 is the `|` between words, and the other characters that occur follow in order.
"""

import pathlib
from dataclasses import dataclass

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError, shorten
from tl_jax.data import files, rows
from tl_jax.data.examples import Examples
from tl_jax.data.sounds import decode_sound
from tl_jax.data.sources import table

# What libsndfile reads and people keep speech in.
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class Config:
    """
    Attributes:
      sound: the column of paths.
      label: the column of classes.
      text: the column of transcripts; then `label` is not read.
    """

    sound: str = "path"
    label: str = "label"
    text: str | None = None


def reads(path: pathlib.Path) -> bool:
    """Whether this is of the form that `read` and `read_unlabelled` take."""
    return rows.holds(path) or bool(_files(path))


def read(data: Data, options: Config) -> dict[str, Examples]:
    """The sets of the file (`all`) or of the folder's files.

    Raises:
      UserError: as the source `table`; a sound that is not there, an empty transcript.
    """
    path = files.data_path(data, "a .tsv, .csv or .jsonl file, or a folder of them")
    if options.text is None:
        listed = table.read(data, table.Config(text=options.sound, label=options.label))
    else:
        listed = _transcribed(path, data.group, options)
    folder = path if path.is_dir() else path.parent
    return {split: _sounds(folder, examples) for split, examples in listed.items()}


def read_unlabelled(path: str | pathlib.Path, options: Config) -> Examples:
    """Sounds without labels, for prediction: a table whose other columns are not read, one file, or every sound file
    under a folder.

    Raises:
      UserError: nothing there, no sound, a sound that is not there.
    """
    path = files.existing(path, "a sound, a folder of sounds or a table of them")
    folder = path if path.is_dir() else path.parent
    if path.is_file() and rows.holds(path):
        return _sounds(folder, table.read_unlabelled(path, table.Config(text=options.sound)))
    names = [file.relative_to(folder).as_posix() for file in _files(path)]
    if not names:
        raise UserError(str(path), "holds no sound", f"files of {', '.join(_SUFFIXES)} are read")
    return _sounds(folder, Examples(lambda i: {"text": names[i]}, names, kind="text"))


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.suffix.lower() in _SUFFIXES]


def _transcribed(path: pathlib.Path, group: str | None, options: Config) -> dict[str, Examples]:
    """Paths of sounds with labels int64[N, longest transcript]."""
    found = {"all": path} if path.is_file() else _tables(path)
    tables = {split: rows.read(file) for split, file in found.items()}
    texts = {split: ["|".join(str(text).split()) for text in t.column(options.text)] for split, t in tables.items()}
    lines = [
        (f"{part.name}:{line}", text) for split, part in tables.items() for line, text in zip(part.lines, texts[split])
    ]
    empty = [f"{line} has no transcript" for line, text in lines if not text]
    if empty:
        raise UserError(str(path), shorten(empty), "mend these rows")
    classes = ("<pad>", "|", *sorted({symbol for _, text in lines for symbol in text} - {"|"}))
    ids, longest = {symbol: number for number, symbol in enumerate(classes)}, max(len(text) for _, text in lines)
    sets = {}
    for split, part in tables.items():
        labels = np.array([[ids[symbol] for symbol in text] + [0] * (longest - len(text)) for text in texts[split]])
        names = part.column(options.sound)
        sets[split] = Examples(
            lambda i, names=names: {"text": names[i]},
            [f"{part.name}:{line}" for line in part.lines],
            kind="text",
            classes=classes,
            labels=labels,
            groups=None if group is None else [str(cell) for cell in part.column(group)],
        )
    return sets


def _tables(path: pathlib.Path) -> dict[str, pathlib.Path]:
    files_ = [file for file in sorted(path.iterdir()) if file.suffix.lower() in rows.TABLES]
    found = {files.SPLITS[file.stem.lower()]: file for file in files_ if file.stem.lower() in files.SPLITS}
    if "train" not in found:
        raise UserError(str(path), "holds no train.tsv, train.csv or train.jsonl", "rename the file, or give its path")
    return found


def _sounds(folder: pathlib.Path, listed: Examples) -> Examples:
    """The same records with the sounds that their texts name."""
    names = [listed[i]["text"] for i in range(len(listed))]
    gone = [
        f"{key} names {name!r}, no file beside the table"
        for key, name in zip(listed.keys, names)
        if files.leads_out(folder / name, folder) or not (folder / name).is_file()
    ]
    if gone:
        raise UserError(str(folder), shorten(gone), "mend these rows")

    def fetch(index: int) -> dict:
        sound_T, rate = decode_sound(folder / names[index], str(folder / names[index]))
        return {"sound": sound_T, "rate": rate}

    return Examples(
        fetch,
        listed.keys,
        kind="sound",
        classes=listed.classes,
        labels=listed.labels,
        groups=listed.groups,
        file=lambda index: folder / names[index],
    )
