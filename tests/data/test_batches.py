# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The batch plan: every example once an epoch, whatever the seed, the step asked for first, or the buckets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_jax.data.batches import BatchPlan

quick = settings(max_examples=60, derandomize=True, deadline=None)
BUCKETS = (4, 8, 16)
plans = st.fixed_dictionaries(
    {
        "num_examples": st.integers(1, 70),
        "batch_size": st.integers(1, 16),
        "seed": st.integers(0, 5),
        "shuffle": st.booleans(),
        "bucketed": st.booleans(),
    }
)
_RARE = np.array([0] * 50 + [1] * 8 + [4] * 2)


def build(num_examples, batch_size, seed, shuffle, bucketed):
    lengths = np.random.default_rng(seed + 100).integers(1, 17, num_examples) if bucketed else None
    buckets = BUCKETS if bucketed else ()
    return BatchPlan(num_examples, batch_size, seed=seed, shuffle=shuffle, lengths=lengths, buckets=buckets), lengths


@quick
@given(plans, st.integers(0, 3))
def test_every_example_once_an_epoch(options, epoch):
    """In ceil(N / B) batches of B; what fills up has weight 0 and is of the same epoch."""
    plan, lengths = build(**options)
    size, number = options["batch_size"], options["num_examples"]
    assert plan.steps_per_epoch == -(-number // size)
    seen = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        indices, weights, length = plan.batch(step)
        assert indices.shape == weights.shape == (size,) and indices.dtype == np.int64 and weights.dtype == np.float32
        assert set(weights) <= {0.0, 1.0} and weights.sum() >= 1
        seen += indices[weights == 1].tolist()
        if lengths is None:
            assert length is None
        else:
            assert length == min(b for b in BUCKETS if b >= lengths[indices].max())
    assert sorted(seen) == list(range(number))


@quick
@given(plans, st.integers(0, 200))
def test_a_batch_depends_on_seed_and_step_alone(options, step):
    """A new plan asked for one step gives what a plan gives that went through all steps: resuming is continuing."""
    fresh, used = build(**options)[0], build(**options)[0]
    for earlier in range(0, step, 7):
        used.batch(earlier)
    for a, b in zip(fresh.batch(step), used.batch(step)):
        np.testing.assert_array_equal(a, b)


def test_epochs_differ_when_shuffled():
    """Another order and, in it, other batches."""
    plan = BatchPlan(64, 8, seed=0, shuffle=True)
    epochs = [np.concatenate([plan.batch(e * 8 + i)[0] for i in range(8)]) for e in range(3)]
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert set(epochs[0][:8]) != set(epochs[1][:8])


def test_index_order_without_shuffling():
    """Evaluation reads each bucket from its first example on, the same in every epoch; what does not fill a batch goes
    up to the next bucket. Without lengths it reads 0, 1, 2, ..."""
    plan = BatchPlan(5, 2, seed=0, shuffle=False, lengths=np.array([1, 3, 9, 2, 5]), buckets=BUCKETS)
    for epoch in (0, 7):
        got = [plan.batch(epoch * 3 + i) for i in range(3)]
        np.testing.assert_array_equal(np.stack([g[0] for g in got]), [[0, 1], [3, 4], [2, 2]])
        np.testing.assert_array_equal(np.stack([g[1] for g in got]), [[1, 1], [1, 1], [1, 0]])
        assert [g[2] for g in got] == [4, 8, 16]
    plain = BatchPlan(5, 2, seed=0, shuffle=False)
    np.testing.assert_array_equal(np.stack([plain.batch(i)[0] for i in range(3)]), [[0, 1], [2, 3], [4, 4]])


def test_buckets_save_padding():
    """Half short, half long: all but one batch hold only one sort."""
    lengths = np.where(np.arange(100) % 2, 16, 3)
    plan = BatchPlan(100, 8, seed=1, shuffle=True, lengths=lengths, buckets=BUCKETS)
    mixed = sum(len(set(lengths[plan.batch(i)[0]])) > 1 for i in range(plan.steps_per_epoch))
    assert mixed <= 1
    # Batch order is shuffled as well, so lengths do not rise through the epoch.
    order = [plan.batch(i)[2] for i in range(plan.steps_per_epoch)]
    assert order != sorted(order)


def balanced(size, seed=0, classes=_RARE, bucketed=False):
    lengths = np.random.default_rng(seed + 100).integers(1, 17, len(classes)) if bucketed else None
    buckets = BUCKETS if bucketed else ()
    options = {"seed": seed, "shuffle": True, "lengths": lengths, "buckets": buckets, "classes": classes}
    return BatchPlan(len(classes), size, **options), lengths


@quick
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=70).map(np.array),
    st.integers(1, 16),
    st.integers(0, 5),
    st.booleans(),
    st.integers(0, 3),
)
def test_balanced_epochs_hold_every_class_equally_often(classes, size, seed, bucketed, epoch):
    """Up to the rest of N / C, in as many batches as ever; the examples of a class take turns, and a batch's padded
    length fits it."""
    plan, lengths = balanced(size, seed, classes, bucketed)
    assert plan.steps_per_epoch == -(-len(classes) // size)
    seen = []
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        indices, weights, length = plan.batch(step)
        assert indices.shape == (size,) and set(weights) <= {0.0, 1.0}
        seen += indices[weights == 1].tolist()
        assert length == (min(b for b in BUCKETS if b >= lengths[indices].max()) if bucketed else None)
    assert len(seen) == len(classes)
    times = np.bincount(seen, minlength=len(classes))
    by_class = [times[classes == label] for label in np.unique(classes)]
    assert np.ptp([part.sum() for part in by_class]) <= 1 and all(np.ptp(part) <= 1 for part in by_class)


def test_balanced_epochs_take_other_parts_of_a_frequent_class():
    """20 of 50 an epoch: all have been there after a few, and no class is always the one that is rounded up."""
    plan, _ = balanced(7)
    epochs = [np.concatenate([plan.batch(e * 9 + i)[0] for i in range(9)])[:60] for e in range(12)]
    assert set(epochs[0]) != set(epochs[1])
    assert set(np.concatenate(epochs)) == set(range(60))
    classes = np.append(_RARE, 0)
    plan, _ = balanced(61, classes=classes)
    # 21 of one class and 20 of the others.
    assert {np.bincount(classes[plan.batch(epoch)[0]]).argmax() for epoch in range(40)} == {0, 1, 4}


def test_balanced_batches_depend_on_seed_and_step_alone():
    """Resuming is continuing; another seed draws others."""
    used, other = balanced(8, bucketed=True)[0], balanced(8, seed=1)[0]
    for step in range(20):
        for a, b in zip(used.batch(step), balanced(8, bucketed=True)[0].batch(step)):
            np.testing.assert_array_equal(a, b)
    assert any((used.batch(step)[0] != other.batch(step)[0]).any() for step in range(2))


def test_too_long_examples_are_our_mistake():
    """Transforms cut texts at the last bucket; a longer one is a defect, not a user's error."""
    with pytest.raises(AssertionError):
        BatchPlan(2, 1, seed=0, shuffle=True, lengths=np.array([3, 17]), buckets=BUCKETS)
