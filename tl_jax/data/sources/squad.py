# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Questions on texts, in the JSON of SQuAD 1.1 and 2.0.

    Data("squad", path="xquad_en", group="title")

`data.path` is one `.json` file (unsplit) or a folder with `train.json`, `dev.json` (or `validation`, `val`) and
`test.json`. A record's key is the question's id; a `data.group` is `title`, so that no article crosses a split.
"""

import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError, shorten
from tl_jax.data import files
from tl_jax.data.examples import Examples


@dataclass(frozen=True)
class Config:
    """No options."""


def reads(path: pathlib.Path) -> bool:
    """Whether this is of the form that `read` takes."""
    return (path / "train.json").is_file() or path.suffix.lower() == ".json"


def read(data: Data, options: Config) -> dict[str, Examples]:
    """The sets of the file (`all`) or of the folder's files: records `{"text": question, "context": str, "answers":
    list of str}` with labels int64[N, 2], where the first answer begins and ends in the context; -1 for no answer.

    Raises:
      UserError: not JSON of this form, an answer that does not stand where it is said to, an id twice.
    """
    path = files.data_path(data, "a .json file of SQuAD, or a folder of them")
    if data.group not in (None, "title"):
        raise UserError("data.group", f"is {data.group!r}, must be title", "questions have no other")
    found = {"all": path} if path.is_file() else _layout(path)
    return {split: _examples(file, data.group is not None) for split, file in found.items()}


def read_unlabelled(path: str | pathlib.Path, options: Config) -> Examples:
    """Questions for prediction; answers, if any, are not read.

    Raises:
      UserError: as `read`, answers apart.
    """
    file = files.existing(path, "a .json file of SQuAD")
    records = [{key: r[key] for key in ("text", "context")} | {"id": r["id"]} for r in _records(file)]
    return Examples(records.__getitem__, [record["id"] for record in records], kind="text")


def _layout(path: pathlib.Path) -> dict[str, pathlib.Path]:
    found = {files.SPLITS[f.stem.lower()]: f for f in sorted(path.glob("*.json")) if f.stem.lower() in files.SPLITS}
    if "train" not in found:
        raise UserError(str(path), "holds no train.json", "rename the file, or give its path")
    return found


def _examples(file: pathlib.Path, grouped: bool) -> Examples:
    records = _records(file)
    mistakes, spans = [], []
    for record in records:
        start, answers = record["start"], record["answers"]
        if not answers:
            spans.append((-1, -1))
            continue
        spans.append((start, start + len(answers[0])))
        there = record["context"][start : start + len(answers[0])] if start >= 0 else ""
        if there != answers[0] or not there.strip():
            mistakes.append(f"{record['id']} has answer {answers[0]!r} at {start}, where the text has {there!r}")
    if mistakes:
        raise UserError(str(file), shorten(mistakes), "mend these questions")
    return Examples(
        records.__getitem__,
        [record["id"] for record in records],
        kind="text",
        labels=np.array(spans, np.int64),
        groups=[record["title"] for record in records] if grouped else None,
    )


def _records(file: pathlib.Path) -> list[dict[str, Any]]:
    """All questions of a file."""
    try:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        records = [
            {
                "id": str(question["id"]),
                "title": str(article.get("title", "")),
                "context": paragraph["context"],
                "text": question["question"],
                "answers": [answer["text"] for answer in question.get("answers", ())],
                "start": next((int(answer["answer_start"]) for answer in question.get("answers", ())), -1),
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"is no JSON of SQuAD ({type(error).__name__}: {error})"
        raise UserError(str(file), what, "it begins with data, paragraphs, qas") from error
    ids = [record["id"] for record in records]
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if twice or not records:
        raise UserError(str(file), f"has ids twice: {shorten(twice)}" if twice else "holds no question", "mend it")
    return records
