# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A trace of some steps of a run, as `jax.profiler` writes it and XProf or TensorBoard show it.

with profile.traced(step, profile.span_of("10:15", total), "runs/x/profile", done=0) as step:
    state, metrics = step(state, batch)

It holds what happens from the first step asked for to the end of the last, evaluations between them too. Other steps
are counted and else left as they are.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from tl_jax.core.errors import UserError


def span_of(text: str | None, total: int) -> tuple[int, int] | None:
    """`"10:15"` -> (10, 15), the first and last step, counted from 1.

    Raises:
      UserError: steps that the run of `total` has not.
    """
    if text is None:
        return None
    first, last = map(int, text.split(":"))
    if last > total:
        raise UserError("profile", f"is {text}, the run has {total} steps")
    return first, last


@contextlib.contextmanager
def traced(
    step: Callable[[Any, Any], Any], span: tuple[int, int] | None, folder: str, done: int
) -> Iterator[Callable[[Any, Any], Any]]:
    """`step`, with a trace of those within `span`; one that is under way when the block ends is written too.

    Args:
      folder: made where it is missing; one that goes on after a stop adds a second trace.
      done: steps before the first call.
    """
    if span is None:
        yield step
        return
    first, last = span
    number, tracing = done, False

    def counted(state, batch):
        nonlocal number, tracing
        number += 1
        if first <= number <= last and not tracing:
            # What was handed over before is not of these steps.
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
            tracing = True
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            result = step(state, batch)
        if tracing and number == last:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            tracing = False
        return result

    try:
        yield counted
    finally:
        if tracing:
            jax.profiler.stop_trace()
