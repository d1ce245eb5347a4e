# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tables as columns: `.tsv`, `.csv`, `.jsonl` and `.txt` files in UTF-8.

    table = read(pathlib.Path("train.tsv"))
    texts = table.column("text")

Lines that hold nothing are skipped in a table; in a `.txt` file every line is a record. Knows cells, not labels.
"""

import csv
import io
import json
import pathlib
from dataclasses import dataclass
from typing import Any

from tl_jax.core.errors import UserError, did_you_mean, shorten
from tl_jax.data.files import SPLITS

TABLES = (".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class Table:
    """The cells of a file.

    Attributes:
      columns: cells by column name; text, or in a `.jsonl` file any JSON value, None where a record lacks it.
      lines: the line, counted from 1, on which each record ends.
    """

    path: pathlib.Path
    columns: dict[str, list[Any]]
    lines: list[int]

    @property
    def name(self) -> str:
        return self.path.name

    def column(self, name: str) -> list[Any]:
        """The cells of a column; UserError with the nearest name when there is none."""
        if name not in self.columns:
            raise UserError(
                str(self.path), f"has no column {name!r}{did_you_mean(name, self.columns)}", "name it in data.options"
            )
        return self.columns[name]


def holds(path: pathlib.Path) -> bool:
    """Whether this is a table or a `.txt` file, or a folder of tables named after splits."""
    if path.is_dir():
        return any(file.suffix.lower() in TABLES and file.stem.lower() in SPLITS for file in path.iterdir())
    return path.suffix.lower() in (*TABLES, ".txt")


def read(path: pathlib.Path, quoting: bool | None = None, text: str = "text") -> Table:
    """The table in a file.

    Args:
      quoting: whether `"` quotes cells; None for no in a TSV and yes in a CSV.
      text: what to call the one column of a `.txt` file.

    Raises:
      UserError: another kind of file, not UTF-8, no records, a column name twice, rows of another length than the
        header (all are named), a line that is no JSON object.
    """
    suffix = path.suffix.lower()
    if suffix not in (*TABLES, ".txt") or not path.is_file():
        raise UserError(str(path), f"is not a file of {', '.join(TABLES)} or .txt", "convert it")
    content = _content(path)
    if suffix == ".txt":
        texts = content.removesuffix("\n").split("\n") if content else []
        table = Table(path, {text: [line.removesuffix("\r") for line in texts]}, list(range(1, len(texts) + 1)))
    elif suffix == ".jsonl":
        table = _json_lines(path, content)
    else:
        delimiter = "\t" if suffix == ".tsv" else ","
        quoted = suffix == ".csv" if quoting is None else quoting
        table = _delimited(path, _quoted(path, content, delimiter) if quoted else _plain(content, delimiter))
    if not table.lines:
        raise UserError(str(path), "holds no records", "check the file")
    return table


def _content(path: pathlib.Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(str(path), f"line {line} is not UTF-8", "convert the file to UTF-8") from error


def _plain(content: str, delimiter: str) -> list[tuple[int, list[str]]]:
    # `str.splitlines` would also break at form feeds and Unicode separators inside a text.
    lines = (line.removesuffix("\r") for line in content.split("\n"))
    return [(number, line.split(delimiter)) for number, line in enumerate(lines, 1) if line]


def _quoted(path: pathlib.Path, content: str, delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise UserError(
            str(path), f"line {reader.line_num}: {error}", "mend the quotes, or set data.options.quoting"
        ) from error


def _delimited(path: pathlib.Path, rows: list[tuple[int, list[str]]]) -> Table:
    header = [name.strip() for name in rows[0][1]] if rows else []
    twice = sorted({repr(name) for name in header if header.count(name) > 1})
    if twice:
        raise UserError(str(path), f"has more than one column {shorten(twice)}", "rename them")
    ragged = [f"line {line} has {len(cells)}" for line, cells in rows[1:] if len(cells) != len(header)]
    if ragged:
        what = f"the header has {len(header)} columns, {shorten(ragged)}"
        raise UserError(str(path), what, "quote or remove the separators inside cells")
    columns = {name: [cells[i] for _, cells in rows[1:]] for i, name in enumerate(header)}
    return Table(path, columns, [line for line, _ in rows[1:]])


def _json_lines(path: pathlib.Path, content: str) -> Table:
    records, lines, wrong = [], [], []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        # Deep nesting exhausts the parser's recursion.
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
            lines.append(number)
        else:
            wrong.append(f"line {number}")
    if wrong:
        raise UserError(str(path), f"{shorten(wrong)} is not a JSON object", "write one object a line")
    names = list(dict.fromkeys(name for record in records for name in record))
    return Table(path, {name: [record.get(name) for record in records] for name in names}, lines)
