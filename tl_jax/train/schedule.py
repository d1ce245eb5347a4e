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

# warmup, initial and final where a config leaves them open: those of fastai's `fit_one_cycle` for `one_cycle`.
_ONE_CYCLE, _OTHERS = (0.25, 1 / 25, 1e-5), (0.1, 0.0, 0.0)


def build(opt: config.Optimizer, steps: int, start: int = 0) -> optax.Schedule:
    """The schedule of `steps` updates.

    The rate rises in a straight line from `initial` times the peak at the first step to exactly the peak after
    `round(warmup * steps)` more, then falls as `opt.schedule` says to `final` times the peak at the last, and stays
    there. The peak is always reached: a rise ends at the last step at the latest, and a single step runs at the peak.

    `one_cycle` is fastai's `fit_one_cycle` (Smith and Topin 2017) with rise and fall along a cosine; momentum is not
    cycled.

    Args:
      opt: `learning_rate` is the peak.
      steps: updates, at least 1.
      start: the number of the first of them.

    Returns:
      step (int or int32[]) -> float32[], safe to trace.
    """
    assert steps >= 1
    asked, usual = (opt.warmup, opt.initial, opt.final), _ONE_CYCLE if opt.schedule == "one_cycle" else _OTHERS
    warmup, initial, final = (given if given is not None else value for given, value in zip(asked, usual))
    top = min(round(warmup * steps), steps - 1)

    def schedule(step):
        done = jnp.asarray(step, jnp.float32) - start
        up = done / max(top, 1)
        down = jnp.clip((done - top) / max(steps - 1 - top, 1), 0, 1)
        if opt.schedule == "constant":
            down = 0.0
        if opt.schedule in ("cosine", "one_cycle"):
            down = _cosine(down)
        if opt.schedule == "one_cycle":
            up = _cosine(up)
        # Written as 1 minus a fall, so that a fall of 0 is the peak to the last bit.
        return opt.learning_rate * jnp.where(done < top, initial + (1 - initial) * up, 1 - (1 - final) * down)

    return schedule


def _cosine(x):
    """0 at 0 and 1 at 1, flat at both ends."""
    return (1 - jnp.cos(jnp.pi * x)) / 2
