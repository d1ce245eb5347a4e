# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The learning rate of every step.

    schedule = build(exp.optimizer, steps=2_000)
    schedule(0), schedule(1_999)             # of the first and of the last update

A pure function of the step, so a resumed run continues it without any state of its own.
"""

import jax.numpy as jnp
import optax

from tl_jax import config


def build(opt: config.Optimizer, steps: int) -> optax.Schedule:
    """The schedule of a run of `steps` updates.

    The rate rises in a straight line from 0 at step 0 to exactly the peak at step `round(warmup * steps)`, then falls
    as `opt.schedule` says to `final` times the peak at step `steps - 1`, and stays there. The peak is always reached:
    a warm-up ends at the last step at the latest, and a single step runs at the peak.

    `one_cycle` is fastai's `fit_one_cycle` (Smith and Topin 2017): along a cosine from 1/25 of the peak to the peak
    over the first quarter, along a cosine to 1e-5 of it. `warmup` and `final` are not used, momentum is not cycled.

    Args:
      opt: `learning_rate` is the peak.
      steps: updates in the whole run, at least 1.

    Returns:
      step (int or int32[]) -> float32[], safe to trace.
    """
    assert steps >= 1
    warmup, start, final = opt.warmup, 0.0, opt.final
    if opt.schedule == "one_cycle":
        warmup, start, final = 0.25, 1 / 25, 1e-5
    top = min(round(warmup * steps), steps - 1)

    def schedule(step):
        up = jnp.asarray(step, jnp.float32) / max(top, 1)
        down = jnp.clip((jnp.asarray(step, jnp.float32) - top) / max(steps - 1 - top, 1), 0, 1)
        if opt.schedule == "constant":
            down = 0.0
        if opt.schedule in ("cosine", "one_cycle"):
            down = _cosine(down)
        if opt.schedule == "one_cycle":
            up = _cosine(up)
        # Written as 1 minus a fall, so that a fall of 0 is the peak to the last bit.
        return opt.learning_rate * jnp.where(step < top, start + (1 - start) * up, 1 - (1 - final) * down)

    return schedule


def _cosine(x):
    """0 at 0 and 1 at 1, flat at both ends."""
    return (1 - jnp.cos(jnp.pi * x)) / 2
