# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The largest batch that fits into memory, found by compiling and by nothing else.

    found = largest(peak, unit=8, start=64, limit=16e9)       # peak: bytes that a step of so many examples takes
    found.size, found.next, found.peaks                        # the one fits, the other was tried and does not

Memory is no straight line in the batch: compilers cut work into parts, losses hold a part of their scores. A line says
where to look next, and only what was compiled counts.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

# How much larger the size may be that is seen not to fit, as a share.
SLACK = 0.05


@dataclasses.dataclass(frozen=True)
class Largest:
    """What was found.

    Attributes:
      size: fits; 0 where not even one unit does.
      next: does not fit, and is at most 5 % or one unit larger.
      peaks: bytes of every size that was asked for, in that order.
    """

    size: int
    next: int
    peaks: Mapping[int, float]


def largest(peak: Callable[[int], float], unit: int, start: int, limit: float) -> Largest:
    """Follow the line through the last two sizes to the limit, until the size there is known to fit and the next not.

    Args:
      peak: bytes that a batch of a size takes, more for a larger one; infinity for one that cannot be told.
      unit: sizes are multiples of it.
      start: the first size to ask for, a multiple too.
      limit: bytes that there are.
    """
    peaks: dict[int, float] = {}
    low, high, size = 0, math.inf, start
    while True:
        peaks[size] = peak(size)
        low, high = (max(low, size), high) if peaks[size] <= limit else (low, min(high, size))
        if high - low <= _step(low, unit):
            return Largest(low, int(high), peaks)
        size = _reached(peaks, limit, low, high) // unit * unit
        # What lies next to a known size would tell little: the far end of what it may be missed by ends the search.
        size = max(size, low + _step(low, unit))
        if high < math.inf:
            size = min(size, int(high) - _step(high / (1 + SLACK), unit))
        size = max(size, low + unit)


def _step(size: float, unit: int) -> int:
    """What the size may be missed by."""
    return max(unit, int(size * SLACK) // unit * unit)


def _reached(peaks: Mapping[int, float], limit: float, low: int, high: float) -> int:
    """Where the line through the last two sizes reaches the limit; of one size alone, the line through nothing."""
    (one, before), (other, last) = [(0, 0.0), *peaks.items()][-2:]
    if math.isinf(before) or math.isinf(last):
        return int(low + high) // 2
    slope = (last - before) / (other - one)
    return int(other + (limit - last) / slope) if slope > 0 else 2 * max(one, other)
