# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whether reading keeps up with the steps, and what to do where it does not.

    told = reading.advice(engine, waited=3.1, seconds=10.0)     # "waited for batches 31 % of the time: …", or None
    threads = reading.threads_needed(500.0, 165.3)              # 4, for so many examples a second, and so many by one

A thread is taken to read as fast as every other, which holds as long as there is a core for it: decoding, resizing and
tokenizing leave Python's lock to others.
"""

import dataclasses
import math
import os

from tl_jax.engine import Engine
from tl_jax.resident import Resident

# Of the time that steps took; waiting less than this goes unmentioned.
_SHARE = 0.05


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_needed(step_rate: float, core_rate: float) -> int:
    """Threads that read `step_rate` examples a second, where one reads `core_rate`."""
    return math.ceil(step_rate / core_rate)


def advice(engine: Engine, waited: float, seconds: float) -> str | None:
    """What a run says at its end; None where it waited too little to speak of, or reads no batches.

    Args:
      waited, seconds: as `train.loop.Progress` has them.
    """
    if waited <= _SHARE * seconds or Resident(engine).why_not() is None:
        return None
    # What reads now takes all the time for what the devices compute in the rest of it.
    threads, here = engine.exp.data.threads, cores()
    needed = threads_needed(max(threads, 1) * seconds, seconds - waited)
    if _could_stay(engine):
        remedy = "train.resident=on would keep the training set on the devices"
    elif needed <= here:
        remedy = f"data.threads={needed} would read as fast as it trains"
    elif threads < here:
        remedy = f"data.threads={here} would shorten it, {needed} would end it, and there are no more cores than {here}"
    else:
        remedy = f"{needed} threads would end it, and there are no more cores than {here}"
    return f"waited for batches {waited / seconds:.0%} of the time: {remedy}"


def _could_stay(engine: Engine) -> bool:
    """Whether the training set fits on the devices; it is read once for that, which spares nothing in one epoch."""
    train = dataclasses.replace(engine.exp.train, resident="on")
    asked = dataclasses.replace(engine, exp=dataclasses.replace(engine.exp, train=train))
    return engine.steps > engine.steps_per_epoch and Resident(asked).why_not() is None
