# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several texts in a row of tokens, so that little of it is padding.

    pack([5, 6, 4], room=10)                 # [[1, 2], [0]]: which texts share a row
    rows = packed(examples, room=128)        # examples of `input_ids` and `segments`, see `nn.segments`

Best fit decreasing (Johnson et al. 1974): the longest text first, each into the row that it leaves least room in. Its
rows are at most 11/9 of the fewest possible, and a few; Ding et al. 2024 train language models on them. Which texts
share a row depends on their lengths alone, so it is the same in every epoch and in every process.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from tl_jax.data.examples import Examples


def pack(lengths: Sequence[int] | np.ndarray, room: int) -> list[list[int]]:
    """The rows, each as the positions of its texts in `lengths`, the longest first.

    Takes O(n log n) comparisons; the kinds of room that rows have left, at most `room`, are a sorted list.

    Args:
      lengths: int[n], from 1 to `room`.
      room: of a row.
    """
    lengths = np.asarray(lengths, np.int64)
    assert not len(lengths) or 1 <= lengths.min() <= lengths.max() <= room, "a text that fits no row"
    rows: list[list[int]] = []
    # By the room they have left, the numbers of the rows; and the rooms of which there are rows, ascending.
    open_rows: dict[int, list[int]] = {}
    left: list[int] = []
    # A stable order, so that equal lengths are packed alike everywhere.
    for position in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[position])
        at = bisect.bisect_left(left, length)
        if at == len(left):
            number, free = len(rows), room
            rows.append([])
        else:
            free = left[at]
            number = open_rows[free].pop()
            if not open_rows[free]:
                del open_rows[free], left[at]
        rows[number].append(position)
        free -= length
        if free and free not in open_rows:
            open_rows[free] = []
            bisect.insort(left, free)
        if free:
            open_rows[free].append(number)
    return rows


def packed(examples: Examples, room: int) -> Examples:
    """These texts as rows of at most `room` tokens.

    Args:
      examples: records `{"input_ids": int32[t]}` with 1 <= t <= room, and labels int64[N, L], the first t of which are
        those of the tokens.

    Returns:
      Records `{"input_ids": int32[t], "segments": int32[t]}`, texts counted from 1, with labels int64[R, room], -1
      behind the last token.
    """
    rows = pack([len(examples[i]["input_ids"]) for i in range(len(examples))], room)

    def fetch(number: int) -> dict[str, np.ndarray]:
        texts = [examples[i]["input_ids"] for i in rows[number]]
        segments = np.repeat(np.arange(1, len(texts) + 1, dtype=np.int32), [len(text) for text in texts])
        return {"input_ids": np.concatenate(texts), "segments": segments}

    labels = np.full((len(rows), room), -1, np.int64)
    for row, members in zip(labels, rows):
        found = np.concatenate([examples.labels[i, : len(examples[i]["input_ids"])] for i in members])
        row[: len(found)] = found
    return Examples(fetch, [f"row {number}" for number in range(len(rows))], kind=examples.kind, labels=labels)
