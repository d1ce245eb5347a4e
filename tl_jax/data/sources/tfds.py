# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sets of TensorFlow Datasets, read without TensorFlow.

    Data("tfds", name="oxford_iiit_pet", path="~/tensorflow_datasets")

The set must be prepared as ArrayRecord, which TFDS does on the first use where the set's own code needs no TensorFlow.
Images stay encoded until they are asked for; one pass over the records reads the labels. A key is `split/position`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError, did_you_mean, shorten
from tl_jax.data.decode import decode_image
from tl_jax.data.examples import Examples


@dataclass(frozen=True)
class Config:
    """
    Attributes:
      image, text: the feature to read; when both are None the set's only image feature, else its only text feature.
      label: the class feature; the set's only one when None. A sequence of classes gives several labels a record.
      splits: ours -> theirs, such as `{"train": "train[:80%]", "validation": "train[80%:]"}`; when empty, `train`,
        `validation` and `test` as far as they are there.
      channels: of images: 3 for RGB, 1 for grey.
    """

    image: str | None = None
    text: str | None = None
    label: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    channels: Literal[1, 3] = 3


def read(data: Data, options: Config) -> dict[str, Examples]:
    """The sets that `options.splits` names; `data.path` is the TFDS data folder, `data.name` as TFDS writes it
    (`name`, `name/config`, `name:1.0.0`).

    Raises:
      UserError: no such set and none to be had, no such feature or split, a label that the set itself calls unknown
        (-1), a record that cannot be read.
    """
    import tensorflow_datasets as tfds

    if not data.name:
        raise UserError(
            "data.name", "is not set, the name of a set was expected", "set data.name, for instance to mnist"
        )
    builder = _builder(data)
    features = builder.info.features
    content, kind, label = _features(data, features, options)
    if data.group is not None and data.group not in features:
        raise UserError("data.group", f"{data.name} has no feature {data.group!r}{did_you_mean(data.group, features)}")
    # A sequence answers for its element's attributes, so only its own `feature` tells them apart.
    many = isinstance(features[label], tfds.features.Sequence)
    classes = (features[label].feature if many else features[label]).names
    sets = {}
    for split, theirs in _splits(data, builder, options).items():
        source = _source(data, builder, theirs)
        labels, groups = [], []
        for position in range(len(source)):
            record = _record(source, position, f"{data.name} {theirs}/{position}")
            # An empty sequence comes as floats.
            labels.append(np.atleast_1d(record[label]).astype(np.int64))
            groups.append(_string(record[data.group]) if data.group is not None else "")
        sets[split] = Examples(
            _fetch(source, f"{data.name} {theirs}", content, kind, options.channels),
            [f"{theirs}/{position}" for position in range(len(source))],
            kind=kind,
            classes=classes,
            labels=_encode(labels, len(classes), many, f"{data.name} {theirs}"),
            groups=groups if data.group is not None else None,
        )
    return sets


def _builder(data: Data):
    import tensorflow_datasets as tfds

    try:
        # Of a set prepared before, the format is read from its folder.
        builder = tfds.builder(data.name, **({"data_dir": data.path} if data.path else {"file_format": "array_record"}))
        builder.download_and_prepare()
    # A set's own code may raise anything, from a missing TensorFlow to a refused connection.
    except Exception as error:
        what = f"the set is not there and cannot be prepared ({type(error).__name__}: {_first_line(error)})"
        raise UserError(
            f"{data.name} in {data.path or 'the TFDS data folder'}",
            what,
            "prepare it as ArrayRecord where TensorFlow and a network are, and set data.path to that folder",
        ) from error
    return builder


def _features(data: Data, features: Any, options: Config) -> tuple[str, str, str]:
    """(content feature, kind, label feature)."""
    import tensorflow_datasets as tfds

    def classes(feature) -> bool:
        return isinstance(getattr(feature, "feature", feature), tfds.features.ClassLabel)

    def find(option: str, given: str | None, fits) -> str:
        fitting = sorted(name for name in features if fits(features[name]))
        if given in fitting or (given is None and len(fitting) == 1):
            return given or fitting[0]
        found = f"feature {given!r} is not one" if given else f"{len(fitting)} features could be one"
        there = (
            f"; {data.name} has {shorten(fitting)}"
            if fitting
            else f"; {data.name} has only {shorten(sorted(features))}"
        )
        raise UserError(f"data.options.{option}", found + there, f"name the {option} feature")

    if options.image and options.text:
        raise UserError("data.options", "image and text are both given", "give one")
    images = [name for name in features if isinstance(features[name], tfds.features.Image)]
    kind = "image" if options.image or (images and not options.text) else "text"
    fits = tfds.features.Image if kind == "image" else tfds.features.Text
    content = find(kind, options.image or options.text, lambda feature: isinstance(feature, fits))
    return content, kind, find("label", options.label, classes)


def _splits(data: Data, builder, options: Config) -> dict[str, str]:
    wanted = options.splits or {name: name for name in ("train", "validation", "test") if name in builder.info.splits}
    wrong = sorted(set(wanted) - {"train", "validation", "test"})
    if wrong or "train" not in wanted:
        what = f"{shorten(map(repr, wrong))} is no split of ours" if wrong else f"no train split in {data.name}"
        there = ", ".join(builder.info.splits)
        raise UserError("data.options.splits", f"{what}; the set has {there}", 'write {"train": "..."} and so on')
    return wanted


def _source(data: Data, builder, split: str):
    import tensorflow_datasets as tfds

    features = builder.info.features
    raw = {name: tfds.decode.SkipDecoding() for name in features if isinstance(features[name], tfds.features.Image)}
    try:
        return builder.as_data_source(split=split, decoders=raw or None)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise UserError(
            f"{data.name} {split}", _first_line(error), "name a split that is there, in a set prepared as ArrayRecord"
        ) from error


def _record(source, position: int, where: str) -> dict[str, Any]:
    try:
        return source[position]
    # The reader and the protobuf parser have their own exception types.
    except Exception as error:
        raise UserError(where, f"cannot be read ({_first_line(error)})", "prepare the set again") from error


def _fetch(source, where: str, content: str, kind: str, channels: int):
    def fetch(position: int) -> dict[str, Any]:
        at = f"{where}/{position}"
        value = _record(source, position, at)[content]
        return {"image": decode_image(value, at, channels)} if kind == "image" else {"text": _string(value)}

    return fetch


def _encode(labels: list[np.ndarray], num_classes: int, many: bool, where: str) -> np.ndarray:
    wrong = [f"{where}/{i}" for i, row in enumerate(labels) if ((row < 0) | (row >= num_classes)).any()]
    if wrong:
        raise UserError(
            shorten(wrong, 3), f"has no label in [0, {num_classes})", "leave the split out in data.options.splits"
        )
    if not many:
        return np.array([row[0] for row in labels], np.int64)
    encoded = np.zeros((len(labels), num_classes), np.float32)
    for i, row in enumerate(labels):
        encoded[i, row] = 1
    return encoded


def _string(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
