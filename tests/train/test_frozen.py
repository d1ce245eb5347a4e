# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Frozen means bit-identical, whatever the optimizer, decay, clip and accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from flax import nnx

from tl_jax.config import Optimizer, Plan
from tl_jax.core import chain
from tl_jax.core.chain import Carry
from tl_jax.train import optimizer
from tl_jax.train.step import Step, initial_state

_NAMES = ("adamw", "sgd", "lion", "lamb", "adafactor", "muon")
_STEPS = 20


class _Net(chain.Backbone):
    """A frozen stage with running statistics, then a kernel for Muon and a head: compiling is all of the time here."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem = toys.Layer(4, 0.0, rngs=rngs)
        self.body = toys.Mixer(4, rngs=rngs)
        self.chains = nnx.static({"": ("stem", "body")})
        self.add_stage("head", toys.Head(4, 3, rngs=rngs))

    def begin(self, chain, batch, done):
        return Carry(batch["x"], {}, {})


def _bits(tree):
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.items()}


def _run(name, decay, clip, accumulate):
    """Leaves before and after 20 steps, all in one program."""
    objective, params = toys.objective(_Net(), Plan(train=("(body/linear|head)/kernel",)))
    # What rounding, or an addition of zero, would change: -0.0 and the smallest normal number.
    params["stem/linear/bias"] = jnp.asarray([-0.0, 0.0, 1.17549435e-38, 1.0], jnp.float32)
    resolved = objective.plan
    tx = optimizer.build(
        Optimizer(name, clip_norm=clip),
        optax.constant_schedule(0.1),
        lr=resolved.lr,
        decay=dict.fromkeys(resolved.trained, decay),
        frozen=set(params) - set(resolved.trained),
    )
    step = Step(objective, tx, accumulate=accumulate)
    state = initial_state(params, resolved.trained, resolved.moving, tx, jax.random.key(0))
    batches = jax.tree.map(lambda *x: np.stack(x), *(toys.vectors(seed=seed) for seed in range(_STEPS)))

    after, metrics = jax.jit(lambda state: jax.lax.scan(step.fn, state, batches))(state)
    assert np.isfinite(metrics["loss"]).all() and int(after.step) == _STEPS
    return params, after.params


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", _NAMES)
def test_frozen_leaves_keep_their_bits(name, decay, clip, accumulate):
    """Parameters and running statistics outside of the plan are those of step 0; what trains has moved."""
    before, after = _run(name, decay, clip, accumulate)
    trains = {"body/linear/kernel", "head/kernel"}
    assert {"stem/norm/mean", "stem/norm/var", "stem/linear/kernel", "head/bias"} <= set(before) - trains
    before, after = _bits(before), _bits(after)
    assert {path for path in before if before[path] != after[path]} == trains
