# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`train.remat=auto`: the first of `none`, `dots` and `block` with which the compiled training step fits a device.

    engine, told = settled(engine, costs.peak, meshes.memory_limit(engine.mesh))
    told                                    # "remat: dots, 11.2 of 15.9 GB; none would take 21.4"

The choice changes what is kept for the backward pass, never what is computed. Knows engines, and of memory only what it
is told.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from tl_jax.core.chain import Remat
from tl_jax.core.errors import UserError
from tl_jax.plan import resolve

ORDER: tuple[Remat, ...] = ("none", "dots", "block")


def settled(engine, peak: Callable[..., float], limit: int | None) -> tuple:
    """The engine with what fits in all its phases in place of `auto`, and a line that says why.

    Another engine comes back as it is, with an empty line.

    Args:
      engine: of any phase.
      peak: (engine of a phase, bytes that are enough) -> bytes that a step takes on a device, infinity where the
        compiler finds no room; below what is enough, a bound will do. Asked at most three times a phase.
      limit: bytes of a device; None where nobody knows them.

    Raises:
      UserError: not even `block` fits.
    """
    if engine.exp.train.remat != "auto":
        return engine, ""
    if limit is None:
        return under(engine, "none"), "remat: none, as devices here do not say what memory they have"
    limit, taken = _agreed(limit), {}
    for remat in ORDER:
        other = under(engine, remat)
        taken[remat] = max(peak(other.phase(number), limit) for number in range(len(other.stretches)))
        if taken[remat] <= limit:
            *others, _ = taken
            why_not = "".join(f"; {name} would take {_gigabytes(taken[name])}" for name in others)
            return other, f"remat: {remat}, {_gigabytes(taken[remat])} of {_gigabytes(limit)} GB{why_not}"
    least, size = taken[ORDER[-1]], engine.exp.train.batch_size
    takes = "finds no room" if math.isinf(least) else f"takes {_gigabytes(least)} GB"
    what = f"is auto, and a step of {size} examples {takes} with {ORDER[-1]}, a device has {_gigabytes(limit)} GB"
    raise UserError("train.remat", what, "lower train.batch_size")


def under(engine, remat: Remat):
    """The same engine, at the same phase, whose blocks above the cut compute again what `remat` says."""
    train = dataclasses.replace(engine.exp.train, remat=remat)
    stretches = tuple(
        dataclasses.replace(each, plan=resolve.with_remat(each.plan, engine.chains, remat)) for each in engine.stretches
    )
    other = dataclasses.replace(engine, exp=dataclasses.replace(engine.exp, train=train), stretches=stretches)
    return other.phase(engine.number)


def _agreed(limit: int) -> int:
    """The least of what all processes say, in whole megabytes: they must choose the same."""
    if jax.process_count() == 1:
        return limit
    # No process can send more than 32 bits of a number.
    return 2**20 * int(np.min(multihost_utils.process_allgather(np.int32(limit // 2**20))))


def _gigabytes(size: float) -> str:
    return "more than there is" if math.isinf(size) else f"{size / 1e9:.3g}"
