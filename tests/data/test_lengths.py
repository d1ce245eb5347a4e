# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Lengths to pad to, against every other choice there is, and the share of padding, counted by hand."""

import itertools

import makers
import numpy as np
import pytest

from tl_jax import inputs
from tl_jax.config import Data
from tl_jax.data.batches import BatchPlan
from tl_jax.data.lengths import choose, padding
from tl_jax.data.sounds import SoundSpec, SoundTransform
from tl_jax.engine import build


def padded(lengths, buckets) -> int:
    """Tokens of all examples, each at the smallest length that fits."""
    return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)


@pytest.mark.parametrize("seed", range(6))
def test_no_other_choice_pads_less(seed):
    """Of all sets of as many multiples of 8; and one length more would not have been worth its program."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.04, 300) + rng.integers(0, 20, 300), 96)
    chosen = choose(lengths, 200)
    *used, beyond = chosen
    assert beyond == 200 and 1 < len(used) <= 6 and all(bucket % 8 == 0 for bucket in used)
    tried = range(8, 96, 8)

    def best(count):
        return min(padded(lengths, (*c, 96)) for c in itertools.combinations(tried, count))

    assert padded(lengths, chosen) == best(len(used) - 1) < 0.97 * best(len(used) - 2)
    assert len(used) == 6 or best(len(used)) >= 0.97 * padded(lengths, chosen)


@pytest.mark.parametrize(
    "lengths,longest,expected",
    [
        ([5] * 9, 128, (8, 128)),
        ([126, 128, 127], 128, (128,)),
        ([1], 2, (2,)),
        ([99, 100], 100, (100,)),
        ([16_000] * 50 + [160_000] * 50, 160_000, (16_328, 160_000)),
    ],
)
def test_alike_lengths_take_one_program(lengths, longest, expected):
    """The largest is never exceeded; long ones are told apart in steps of a hundredth."""
    assert choose(np.array(lengths), longest) == expected


def test_order_does_not_matter():
    """A pure function of which lengths there are."""
    lengths = np.random.default_rng(0).integers(1, 100, 200)
    assert choose(lengths, 100) == choose(np.sort(lengths), 100)


def test_padding_is_counted_exactly():
    """Two batches of four: at 4 with lengths 1 to 4, at 8 with one example of 6 that fills it up alone."""
    lengths = np.array([1, 2, 3, 4, 6])
    plan = BatchPlan(5, 4, seed=0, shuffle=True, lengths=lengths, buckets=(4, 8, 16))
    found = padding(plan)
    assert found.lengths == (4, 8) and found.share == pytest.approx(1 - 16 / (4 * 4 + 4 * 8))
    assert str(found) == "padding: 67% of an epoch, at lengths 4, 8"


def test_a_run_without_buckets_finds_its_own(tmp_path):
    """By its training texts; validation is padded to the same lengths, `()` still means one length."""
    exp = makers.changed(makers.text_run(tmp_path), data__max_length=31, data__buckets=None)
    engine = build(exp)
    lengths = engine.transform.lengths(engine.sets["train"])
    assert engine.train_plan.buckets == choose(lengths, 31) and len(engine.train_plan.buckets) > 2
    assert engine.eval_plan(engine.sets["validation"]).buckets == engine.train_plan.buckets
    one = build(makers.changed(exp, data__buckets=()))
    assert one.train_plan.buckets == (31,) and padding(one.train_plan).share > 0.6 > padding(engine.train_plan).share


def test_unmasked_sounds_are_padded_alike():
    """What a network makes of them depends on the padding."""
    lengths = np.arange(2000, 9000)
    data = Data("sounds", max_length=9000)
    masked, unmasked = (SoundTransform(SoundSpec(masked=told), 9000) for told in (True, False))
    assert inputs.buckets(data, masked, lengths)[0] < 9000 and inputs.buckets(data, unmasked, lengths) == (9000,)
