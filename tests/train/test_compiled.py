# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiler makes of a step: frozen stages cost their forward pass and nothing else.

Six blocks, unrolled: the compiler counts a scan's body once. Dropout is off, so that both sides compute alike.
"""

import functools

import jax
import numpy as np
import optax
import pytest
import toys
from flax import nnx

from tl_jax.config import Optimizer, Plan
from tl_jax.core import chain
from tl_jax.core.chain import EVAL
from tl_jax.train import optimizer
from tl_jax.train.step import Step, initial_state

_WIDTH, _BATCH, _LENGTH = 128, 8, 64


def _model():
    return toys.small_bert(layers=6, width=_WIDTH, rate=0.0)


def _batch():
    shapes = {"input_ids": (_BATCH, _LENGTH), "attention_mask": (_BATCH, _LENGTH), "label": (_BATCH,)}
    return {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}


@functools.cache
def _compiled(preset, n=None, accumulate=1):
    """(compiled step, abstract state, abstract batch) of one plan, with clipping and decay on."""
    objective, params = toys.objective(nnx.eval_shape(_model), Plan(preset=preset, n=n))
    plan = objective.plan
    tx = optimizer.build(
        Optimizer("adamw", clip_norm=1.0),
        optax.constant_schedule(1e-3),
        lr=plan.lr,
        decay=dict.fromkeys(plan.trained, 0.1),
    )
    step = Step(objective, tx, accumulate=accumulate)

    def start():
        leaves = {path: jax.numpy.zeros(leaf.shape, leaf.dtype) for path, leaf in params.items()}
        return initial_state(leaves, plan.trained, plan.moving, tx, jax.random.key(0))

    state = jax.eval_shape(start)
    return step.core.lower(state.moving, state.constant, _batch()).compile(), state


@functools.cache
def _forward():
    model = nnx.eval_shape(_model)
    chains, params = chain.split(model)

    def run(params, batch):
        outputs, _ = chain.run_chains(model, chains, params, batch, lambda _: EVAL)
        return toys.cross_entropy(outputs, batch)[0].sum()

    return jax.jit(run).lower(params, _batch()).compile()


def _flops(compiled):
    return compiled.cost_analysis()["flops"]


def _temporaries(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


def _bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_head_only_step_costs_a_forward_pass():
    """At most 5 % above it, with clipping and the norm of the gradients in the log."""
    forward, head = _flops(_forward()), _flops(_compiled("linear_probe")[0])
    by_hand = 6 * 2 * _BATCH * _LENGTH * _WIDTH * (12 * _WIDTH + 2 * _LENGTH)
    # The figure itself is right: matrix products by hand, and at most a fifth of element-wise work on top.
    assert by_hand <= forward <= 1.2 * by_hand
    assert head <= 1.05 * forward


def test_head_only_step_keeps_no_activations():
    """Temporaries at most 0.15 times those of a full step."""
    assert _temporaries(_compiled("linear_probe")[0]) <= 0.15 * _temporaries(_compiled("full")[0])


def test_full_step_costs_three_forward_passes():
    """The oracle that the figures mean something: forward, and twice that backward."""
    assert 2.8 <= _flops(_compiled("full")[0]) / _flops(_forward()) <= 3.3


def test_last_block_costs_its_own_backward_pass():
    """Forward through all; backward, twice as much, at most through one block of six. Gradients towards its input are
    not needed, which saves up to a quarter of that."""
    ratio = _flops(_compiled("last_n", 1)[0]) / _flops(_forward())
    assert 1 + 2 / 6 * 0.75 <= ratio <= 1 + 2 / 6


@pytest.mark.parametrize("preset,n", [("linear_probe", None), ("last_n", 1), ("full", None)])
def test_frozen_leaves_have_no_optimizer_state(preset, n):
    """Two moments for every number that trains, two counters, and not a byte for the others."""
    _, state = _compiled(preset, n)
    trained = sum(leaf.size for leaf in state.trained.values())
    scalars = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == ()]
    slots = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape != ()]
    assert _bytes(slots) == 2 * 4 * trained
    assert 1 <= len(scalars) <= 2


def test_a_step_returns_what_moves_and_nothing_else():
    """Outputs are the trained leaves, their slots and a few numbers; all but those are written over the inputs."""
    compiled, state = _compiled("linear_probe")
    moving = _bytes(state.moving)
    memory = compiled.memory_analysis()
    assert moving <= memory.output_size_in_bytes <= moving + 1024
    assert memory.alias_size_in_bytes >= moving - 64


def test_accumulating_a_head_keeps_no_activations_either():
    """In a scan over portions too, whose temporaries are those of one portion."""
    assert _temporaries(_compiled("linear_probe", None, 4)[0]) <= 0.15 * _temporaries(_compiled("full")[0])
