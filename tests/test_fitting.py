# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The largest batch that fits: of memory that is a line, a stair, or refused; and of four families, compiled."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from tl_jax import fitting, loading
from tl_jax.config import Optimizer, Plan
from tl_jax.tasks import classification, language_model
from tl_jax.train import optimizer
from tl_jax.train.step import Step, initial_state

_FAMILIES = {
    "resnet": {"stem": "cifar", "depths": [1, 1], "hidden_sizes": [8, 16]},
    "gpt2": {"vocab_size": 512, "n_embd": 32, "n_layer": 1, "n_head": 2},
}
_MB = 10**6


def line(size):
    """Bytes with a fixed part."""
    return 1000 + 10 * size


def stair(size):
    """Work is cut into more parts the more there is."""
    return 1000 + 700 * math.ceil(size / 64)


def wall(size):
    """A compiler that refuses what is far too large."""
    return line(size) if size < 300 else math.inf


@pytest.mark.parametrize("peak", [line, stair, wall])
@pytest.mark.parametrize("unit,start", [(1, 4), (8, 8), (8, 40_000)])
@pytest.mark.parametrize("limit", [900, 1080, 3210, 99_999])
def test_the_size_fits_and_the_next_does_not(peak, unit, start, limit):
    """Both were asked for, and the next is at most 5 % or one unit larger."""
    found = fitting.largest(peak, unit, start, limit)
    assert found.size % unit == found.next % unit == 0
    assert found.size == 0 or found.peaks[found.size] == peak(found.size) <= limit
    assert found.peaks[found.next] == peak(found.next) > limit
    assert found.next - found.size <= max(unit, 0.05 * found.size)


@pytest.mark.parametrize("limit", [5_000, 1_000_000])
def test_a_line_takes_four_sizes(limit):
    """The start, the line through nothing, the line through both, and the next size."""
    assert len(fitting.largest(line, 1, 16, limit).peaks) <= 4


def peak_of(family: str):
    """Bytes of a full step of a small network, as compiled for so many examples."""
    checkpoint = loading.from_config({"model_type": family, **_FAMILIES[family]})
    if family == "gpt2":
        task = language_model.Task(language_model.Config(), (), ())
    else:
        task = classification.Task(classification.Config(), ("a", "b"), checkpoint.family.POOLS)
    model = loading.abstract(checkpoint.for_pool(task.pool), loading.adder(task))
    task.arrange(model, 1)
    objective, params = toys.objective(model, Plan("full"), task.training_loss)
    plan = objective.plan
    tx = optimizer.build(Optimizer(), optax.constant_schedule(1e-3), lr=plan.lr, decay=plan.decay)
    step = Step(objective, tx)

    def start():
        leaves = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in params.items()}
        return initial_state(leaves, plan.trained, plan.moving, tx, jax.random.key(0))

    state = jax.eval_shape(start)

    def peak(size: int) -> int:
        texts = {"input_ids": jax.ShapeDtypeStruct((size, 32), np.int32)}
        images = {"pixel_values": jax.ShapeDtypeStruct((size, 16, 16, 3), np.float32)}
        batch = texts if "vocab_size" in _FAMILIES[family] else images
        label = jax.ShapeDtypeStruct((size, 32) if family == "gpt2" else (size,), np.int32)
        compiled = step.core.lower(state.moving, state.constant, batch | {"label": label}).compile()
        found = compiled.memory_analysis()
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        return found.argument_size_in_bytes + found.temp_size_in_bytes + new

    return peak


@pytest.mark.parametrize("family", _FAMILIES)
def test_a_compiled_step_fills_the_memory(family):
    """At least nine tenths of it, and no more than all, after at most five compilations."""
    found = fitting.largest(peak_of(family), 1, 8, 200 * _MB)
    assert 180 * _MB <= found.peaks[found.size] <= 200 * _MB < found.peaks[found.next]
    assert len(found.peaks) <= 5
