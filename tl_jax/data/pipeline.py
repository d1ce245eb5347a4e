# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Batches, read ahead by threads and handed to the devices ahead of time.

    with contextlib.closing(batches(examples, transform, plan, start=step, stop=last, rows=rows, ...)) as stream:
        for batch in on_device(stream, put):
            state, metrics = step(state, batch)

There is no iterator state: a batch depends on the seed and the global step alone, so going on after a stop is starting
at another step, and a process that reads other rows sees its part of the same batches.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from tl_jax.data.batches import BatchPlan
from tl_jax.data.examples import Examples


def batches(
    examples: Examples,
    transform,
    plan: BatchPlan,
    *,
    start: int,
    stop: int,
    rows: slice | np.ndarray,
    seed: int,
    augment: bool,
    threads: int,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of the global steps start .. stop - 1, in order.

    Args:
      transform: `transform(record, rng) -> dict` and `transform.collate(list of dicts, length) -> dict of arrays`;
        called from several threads.
      rows: which rows of each global batch to read; those of this process.
      seed: of the augmentation; see `generator`.
      augment: whether `transform` gets a generator of random numbers, or None.
      threads: reading threads; 0 reads in the calling thread.
      prefetch: batches read ahead, at least one a thread.

    Yields:
      the transform's arrays, `label` (int32[b], or float32[b, C] with several labels; absent when unknown), `weight`
      float32[b] (0 for rows that only fill up) and `id` int32[b], the index into `examples`.

    Raises:
      UserError: as the records and the transform raise it, from whichever thread. Closing the iterator ends its
        threads.
    """
    import grain

    def make(step: int) -> dict[str, np.ndarray]:
        indices, weights, length = plan.batch(step)
        mine = np.arange(len(indices))[rows]
        made = [
            transform(examples[indices[row]], generator(seed, step, row) if augment else None) for row in mine.tolist()
        ]
        batch = dict(transform.collate(made, length))
        batch |= {"weight": weights[mine], "id": indices[mine].astype(np.int32)}
        if examples.labels is not None:
            labels = examples.labels[indices[mine]]
            batch["label"] = labels.astype(np.float32 if examples.multi_label else np.int32)
        return batch

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads) if threads else 0)
    with contextlib.closing(iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))) as stream:
        yield from stream


def generator(seed: int, step: int, row: int) -> np.random.Generator:
    """What the augmentation of a row of a step's global batch is drawn from."""
    return np.random.default_rng((seed, 1, step, row))


def on_device(iterator: Iterator[dict[str, np.ndarray]], put: Callable[[dict], dict], depth: int = 2) -> Iterator[dict]:
    """`put(batch)` of every batch, with up to `depth` of them started before they are asked for.

    Transfers to a device are asynchronous, so the next batch travels while the step computes. Closes `iterator`.
    """
    waiting: collections.deque = collections.deque()
    with contextlib.closing(iterator):
        for batch in iterator:
            waiting.append(put(batch))
            if len(waiting) >= depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
