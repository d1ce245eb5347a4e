# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Texts that share rows: every one once, in few rows, with their own labels."""

import makers
import numpy as np
import pytest

from tl_jax.data.examples import Examples
from tl_jax.data.packing import pack, packed
from tl_jax.data.texts import TextTransform


def drawn(seed: int) -> np.ndarray:
    """Lengths of which some are long and most are short, from 1 to 128."""
    rng = np.random.default_rng(seed)
    return np.minimum(rng.geometric(rng.uniform(0.01, 0.3), rng.integers(1, 3000)), 128)


@pytest.mark.parametrize("seed", range(8))
def test_every_text_is_in_one_row_that_holds_it(seed):
    """And the rows are few: 11/9 of what no packing goes below, and one."""
    lengths = drawn(seed)
    rows = pack(lengths, 128)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(len(lengths)))
    assert max(lengths[row].sum() for row in rows) <= 128
    # Tokens need so many rows, and no two texts of more than half a row share one.
    fewest = max(-(-lengths.sum() // 128), (lengths > 64).sum())
    assert len(rows) <= 11 / 9 * fewest + 1


@pytest.mark.parametrize(
    "lengths,expected",
    [
        ([], []),
        ([6], [[0]]),
        ([10, 10], [[0], [1]]),
        # The third fills the second row, which has less room than the first.
        ([5, 6, 4], [[1, 2], [0]]),
        ([3, 7, 3, 7], [[1, 2], [3, 0]]),
    ],
)
def test_small_packings_by_hand(lengths, expected):
    """Nothing, a text alone, rows filled to the last token, equal texts in their order."""
    assert pack(lengths, 10) == expected


def test_a_packing_depends_on_the_lengths_alone():
    """Twice the same; it is what makes a run that goes on the run that was never broken off."""
    lengths = drawn(0)
    assert pack(lengths, 128) == pack(lengths.tolist(), 128) == pack(lengths.astype(np.int32), 128)


def test_rows_hold_texts_their_numbers_and_their_labels(tmp_path):
    """And a batch of them brings `segments` in place of a mask, zero where nothing is."""
    texts = [np.array([7, 8, 9], np.int32), np.array([5], np.int32), np.array([4, 6], np.int32)]
    labels = np.array([[8, 9, 1, -1], [2, -1, -1, -1], [6, 3, -1, -1]])
    rows = packed(Examples(lambda i: {"input_ids": texts[i]}, list("abc"), kind="text", labels=labels), 5)
    assert [row["input_ids"].tolist() for row in (rows[0], rows[1])] == [[7, 8, 9, 4, 6], [5]]
    assert [row["segments"].tolist() for row in (rows[0], rows[1])] == [[1, 1, 1, 2, 2], [1]]
    assert rows.labels.tolist() == [[8, 9, 1, 6, 3], [2, -1, -1, -1, -1]]
    makers.bert(tmp_path)
    transform = TextTransform(tmp_path, 5, ("input_ids", "attention_mask", "segments"))
    batch = transform.collate([transform(rows[i]) for i in (0, 1)], 6)
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "input_ids": ((2, 6), "int32"),
        "segments": ((2, 6), "int32"),
    }
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(transform.lengths(rows), [5, 1])
