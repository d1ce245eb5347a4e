# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""To which lengths examples are padded, and what of a batch is padding.

    buckets = choose(lengths, longest=128)       # (24, 40, 64, 128), a pure function of the lengths
    padding(plan).share                          # 0.12 of an epoch's tokens are no tokens

Every length is another program to compile, so one more is taken only where it spares enough.
"""

import dataclasses

import numpy as np

from tl_jax.data.batches import BatchPlan

# Lengths at most, `longest` not counted; a further one must spare this share of what is computed.
_MOST, _WORTH = 6, 0.03
# Devices like such multiples; the lengths tried are at most _TRIED.
_MULTIPLE, _TRIED = 8, 128
# Tokens, more than there are and far from what int64 holds.
_NEVER = 2**60


@dataclasses.dataclass(frozen=True)
class Padding:
    """What batches hold beside examples.

    Attributes:
      share: of all tokens of an epoch, or samples, those that only fill up.
      lengths: that occur, ascending.
      rows, texts: where several texts share a row, how many there are of either; else None.
    """

    share: float
    lengths: tuple[int, ...]
    rows: int | None = None
    texts: int | None = None

    def __str__(self) -> str:
        packed = "" if self.rows is None else f"; {self.texts} texts in {self.rows} rows"
        return f"padding: {self.share:.0%} of an epoch, at lengths {', '.join(map(str, self.lengths))}{packed}"


def choose(lengths: np.ndarray, longest: int, shortest: int = 1) -> tuple[int, ...]:
    """The lengths, at most six and `longest`, that pad these examples least, ascending.

    Each is a multiple of 8, or a larger one where examples are long, and at most `longest`. Fewer are taken where one
    more would spare less than 3 % of what is computed.

    Args:
      lengths: int[N], N at least 1, none above `longest`.
      longest: the last length, for examples that are not among these.
      shortest: the least that is worth telling apart.
    """
    step = _MULTIPLE * -(-longest // (_MULTIPLE * _TRIED))
    rounded = np.minimum(-(-np.maximum(lengths, shortest).astype(np.int64) // step) * step, longest)
    tried, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[k][j]: padded tokens of all examples up to tried[j], with k + 1 lengths of which tried[j] is the last.
    cost = [tried * below[1:]]
    last = []
    for _ in range(min(_MOST, len(tried)) - 1):
        whole_IJ = cost[-1][:, None] + tried * (below[1:] - below[1:, None])
        whole_IJ = np.where(np.arange(len(tried))[:, None] < np.arange(len(tried)), whole_IJ, _NEVER)
        last.append(whole_IJ.argmin(axis=0))
        cost.append(whole_IJ.min(axis=0))
    count = 1
    while count < len(cost) and cost[count][-1] < (1 - _WORTH) * cost[count - 1][-1]:
        count += 1
    chosen, at = [], len(tried) - 1
    for step_back in reversed(range(count)):
        chosen.append(int(tried[at]))
        at = last[step_back - 1][at] if step_back else at
    return tuple(sorted({*chosen, longest}))


def padding(plan: BatchPlan) -> Padding | None:
    """Of the first epoch of a plan, exactly; None where examples have no length."""
    real, padded, seen = 0, 0, set()
    for step in range(plan.steps_per_epoch):
        indices, weights, length = plan.batch(step)
        if length is None:
            return None
        real += int(plan.lengths[indices[weights > 0]].sum())
        padded += len(indices) * length
        seen.add(length)
    return Padding(1 - real / padded, tuple(sorted(seen)))
