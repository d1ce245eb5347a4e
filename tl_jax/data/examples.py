# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Random access to the records of one set.

    examples = sources.folder.read(data, options)["train"]
    record, label = examples[7], examples.labels[7]

Labels, groups and keys are known without decoding anything; a record is read, and an image decoded, when it is asked
for. Knows records, not files and not arrays for a model.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np


class Examples:
    """The records of one or more splits.

    Args:
      fetch: position -> record, `{"image": uint8[H, W, C]}`, `{"text": str}` or `{"sound": float32[T], "rate": int}`;
        called from several threads.
      keys: what names each record for good (relative path, row of a file, id in a set); all different.
      kind: what the records hold.
      classes: class names by label.
      labels: int64[N] in [0, C), float32[N, C] of zeros and ones when several classes may hold, int64[N, L] when each
        is a row of numbers, such as a text of classes filled up with 0 or a span; None when unknown.
      groups: what never crosses a split, such as the patient of each record.
      file: position -> the file that, with the source's options, decides the record; None where there is none.
    """

    def __init__(
        self,
        fetch: Callable[[int], dict[str, Any]],
        keys: Sequence[str],
        *,
        kind: Literal["image", "text", "sound"],
        classes: Sequence[str] = (),
        labels: np.ndarray | None = None,
        groups: Sequence[str] | None = None,
        rows: np.ndarray | None = None,
        file: Callable[[int], pathlib.Path] | None = None,
    ):
        self.keys, self.kind, self.classes = list(keys), kind, tuple(classes)
        self.labels = labels
        self.groups = None if groups is None else list(groups)
        self._fetch, self._file = fetch, file
        self._rows = np.arange(len(self.keys)) if rows is None else rows
        assert len(self._rows) == len(self.keys)
        assert labels is None or (len(labels) == len(self.keys) and labels.ndim in (1, 2))
        assert groups is None or len(self.groups) == len(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The raw record at `index`; UserError names the record when it cannot be read."""
        return self._fetch(int(self._rows[index]))

    def content(self, index: int) -> dict[str, Any] | bytes:
        """What the record at `index` is told from others by: the bytes of its file, undecoded, or the record itself."""
        return self[index] if self._file is None else self._file(int(self._rows[index])).read_bytes()

    @property
    def multi_label(self) -> bool:
        """Several classes may hold."""
        return self.labels is not None and self.labels.ndim == 2 and self.labels.dtype.kind == "f"

    @property
    def unclassed(self) -> bool:
        """No label names a class: there is none, or each is a row of numbers."""
        return self.labels is None or (self.labels.ndim == 2 and self.labels.dtype.kind == "i")

    def take(self, indices: Sequence[int] | np.ndarray) -> "Examples":
        """The records at `indices`, in that order; nothing is read."""
        indices = np.asarray(indices, np.int64)
        return Examples(
            self._fetch,
            [self.keys[i] for i in indices],
            kind=self.kind,
            classes=self.classes,
            labels=None if self.labels is None else self.labels[indices],
            groups=None if self.groups is None else [self.groups[i] for i in indices],
            rows=self._rows[indices],
            file=self._file,
        )

    @property
    def records(self) -> "Examples":
        """What was asked for: these, or what they are windows of."""
        return self

    def take_records(self, positions: np.ndarray) -> "Examples":
        """These of `records`, in that order, with all their windows."""
        return self.take(positions)

    def windows(self, fetch: Callable[[int], dict[str, Any]], record_of: np.ndarray, labels: np.ndarray | None):
        """Pieces of these records as examples; see `Windows`."""
        return Windows(fetch, self, record_of, labels)

    def within(self, whole: "Examples") -> np.ndarray | None:
        """int64[N], where these records stand in `whole`; None unless all were taken from it."""
        if self._fetch is not whole._fetch:
            return None
        at = {row: position for position, row in enumerate(whole._rows.tolist())}
        found = [at.get(row) for row in self._rows.tolist()]
        return None if None in found else np.array(found, np.int64)

    def instead(self, fetch: Callable[[int], dict[str, Any]]) -> "Examples":
        """The same keys, labels and groups with other records, by position."""
        return Examples(fetch, self.keys, kind=self.kind, classes=self.classes, labels=self.labels, groups=self.groups)

    def relabelled(self, labels: np.ndarray, classes: Sequence[str]) -> "Examples":
        """The same records with other labels, by the names in `classes`."""
        return Examples(
            self._fetch,
            self.keys,
            kind=self.kind,
            classes=classes,
            labels=labels,
            groups=self.groups,
            rows=self._rows,
            file=self._file,
        )


class Windows(Examples):
    """Pieces of records that are too long for one input, each an example of its own.

    Args:
      records: what they are pieces of.
      record_of: int64[N], whose piece each is; ascending.
      fetch, labels, rows: of the pieces; see `Examples`.
    """

    def __init__(
        self,
        fetch: Callable[[int], dict[str, Any]],
        records: Examples,
        record_of: np.ndarray,
        labels: np.ndarray | None,
        rows: np.ndarray | None = None,
    ):
        keys = [f"{records.keys[record]}#{number}" for number, record in enumerate(record_of.tolist())]
        super().__init__(fetch, keys, kind=records.kind, classes=records.classes, labels=labels, rows=rows)
        self._records, self.record_of = records, record_of

    @property
    def records(self) -> Examples:
        return self._records

    def take_records(self, positions: np.ndarray) -> "Windows":
        members = [np.flatnonzero(self.record_of == position) for position in positions]
        owners = np.repeat(np.arange(len(members)), [len(part) for part in members])
        kept = np.concatenate(members)
        labels = None if self.labels is None else self.labels[kept]
        return Windows(self._fetch, self._records.take(positions), owners, labels, self._rows[kept])


def joined(sets: Sequence[Examples]) -> Examples:
    """The records of several sets of one kind and the same classes, one set after the other."""
    starts = np.cumsum([0, *map(len, sets)])

    def fetch(index: int) -> dict[str, Any]:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        return sets[part][index - starts[part]]

    assert len({(part.kind, part.classes) for part in sets}) == 1
    return Examples(
        fetch,
        [key for part in sets for key in part.keys],
        kind=sets[0].kind,
        classes=sets[0].classes,
        labels=None if sets[0].labels is None else np.concatenate([part.labels for part in sets]),
        groups=None if sets[0].groups is None else [group for part in sets for group in part.groups],
    )
