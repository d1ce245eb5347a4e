# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which examples make up the batch of a step: a pure function of the seed and the global step.

    plan = BatchPlan(1000, 32, seed=0, shuffle=True, lengths=lengths, buckets=(32, 64, 128))
    indices, weights, length = plan.batch(step)

Every example is there exactly once an epoch, and an epoch is ceil(N / B) full batches: the last is filled up with
examples of weight 0. With `classes` an epoch is as long but holds every class equally often: rare examples several
times, and of the frequent ones a part, another in every epoch. The plan is global, so every process sees the same
shapes, and another number of processes sees the same batches. Knows lengths and classes, not what examples hold.
"""

import functools

import numpy as np


class BatchPlan:
    """The batches of all epochs.

    Args:
      num_examples: N, at least 1.
      batch_size: B, over all processes.
      seed: of the order; not negative.
      shuffle: a new order each epoch; otherwise every epoch is in the order of the indices, bucket by bucket.
      lengths: int[N], what each example measures; None when all are of one shape.
      buckets: padded lengths, ascending, the last at least as long as every example; used with `lengths` only.
      classes: int[N], the class of each, only with `shuffle`. Every epoch then holds each of the C classes that occur
        N / C times, rounded up for some, and two examples of one class equally often or once more.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        lengths: np.ndarray | None = None,
        buckets: tuple[int, ...] = (),
        classes: np.ndarray | None = None,
    ):
        assert num_examples >= 1 and batch_size >= 1
        if lengths is not None:
            assert len(lengths) == num_examples and list(buckets) == sorted(set(buckets)), buckets
            assert max(lengths) <= max(buckets, default=0), (max(lengths), buckets)
        assert classes is None or (shuffle and len(classes) == num_examples)
        self._num_examples, self.batch_size, self._classes = num_examples, batch_size, classes
        self._seed, self._shuffle = seed, shuffle
        self.lengths, self._buckets = None if lengths is None else np.asarray(lengths), np.asarray(buckets, np.int64)
        # Reading threads may straddle the end of an epoch, hence two; the cache locks by itself.
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    @property
    def buckets(self) -> tuple[int, ...]:
        """The padded lengths to choose from."""
        return tuple(self._buckets.tolist())

    @property
    def steps_per_epoch(self) -> int:
        """ceil(N / B), the same in every epoch."""
        return -(-self._num_examples // self.batch_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, int | None]:
        """The batch of a global step, counted from 0.

        Returns:
          indices int64[B]; weights float32[B], 0 for examples that only fill up; the padded length, the smallest
          bucket that fits every example of the batch, or None without lengths.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        members = self._epoch(epoch if self._shuffle else 0)[position]
        indices = np.resize(members, self.batch_size)
        weights = (np.arange(self.batch_size) < len(members)).astype(np.float32)
        if self.lengths is None:
            return indices, weights, None
        longest = max(self.lengths[members])
        return indices, weights, int(self._buckets[np.searchsorted(self._buckets, longest)])

    def _make_epoch(self, epoch: int) -> list[np.ndarray]:
        """The members of every batch; all hold B but one."""
        size, rng = self.batch_size, np.random.default_rng((self._seed, epoch))
        members = np.arange(self._num_examples) if self._classes is None else self._balanced(rng)
        order = rng.permutation(members) if self._shuffle else members
        batches, left = [], order[:0]
        for members in self._by_bucket(order):
            # What does not fill a batch goes up to the next longer bucket, so only the last batch can be short.
            members = np.concatenate([left, members])
            full = len(members) // size * size
            batches += np.split(members[:full], full // size) if full else []
            left = members[full:]
        if len(left):
            batches.append(left)
        return [batches[i] for i in rng.permutation(len(batches))] if self._shuffle else batches

    def _balanced(self, rng: np.random.Generator) -> np.ndarray:
        """N examples, of each class as many, and of a class its examples in turns."""
        present = rng.permutation(np.unique(self._classes))
        shares = np.arange(self._num_examples) % len(present)
        parts = [
            np.resize(rng.permutation(np.flatnonzero(self._classes == label)), count)
            for label, count in zip(present, np.bincount(shares))
        ]
        return np.concatenate(parts)

    def _by_bucket(self, order: np.ndarray) -> list[np.ndarray]:
        if self.lengths is None:
            return [order]
        bucket = np.searchsorted(self._buckets, self.lengths[order])
        return [order[bucket == i] for i in range(len(self._buckets))]
