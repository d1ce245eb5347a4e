# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a run keeps what crosses its cut, and the keeping.

    if why_not(engine) is None:
        fill(engine, state)          # from here on, engine's batches bring what crosses the cut instead of inputs

A frozen prefix gives the same features in every epoch. They are computed once for the training and the validation
examples, by a program of their own in index order, so an interrupted run that computes them again gets the same bits.
"""

import functools
import os
import re
from typing import Any

import jax

from tl_jax.core import chain
from tl_jax.core.chain import EVAL
from tl_jax.core.errors import UserError
from tl_jax.parallel import sharding
from tl_jax.plan import cut
from tl_jax.train.activations import Activations, used

# Of the machine's memory; beyond it every epoch computes the prefix again.
_SHARE = 0.25
_SPLITS = ("train", "validation")


def why_not(engine) -> str | None:
    """What speaks against keeping the activations of this run; None where nothing does."""
    exp, plan = engine.exp, engine.plan
    below = [stage.name for name, stages in engine.chains.items() for stage in stages[: plan.cut[name]]]
    if exp.train.cache == "off":
        return "train.cache is off"
    if not any(re.fullmatch(r"blocks/\d+", name) for name in below):
        return "no block lies below the cut"
    if not all(plan.cut.values()):
        return "a chain of the network begins above the cut"
    if exp.data.augment:
        return "data.augment changes the images from epoch to epoch"
    if engine.steps <= engine.steps_per_epoch:
        return "no example is seen twice"
    crossing = _kept(engine)
    if jax.tree.leaves([carry.shared for carry in crossing.values()]):
        return "tables that belong to no example cross the cut"
    size, limit = nbytes(engine), _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > limit:
        return f"it would take {size / 1e9:.1f} GB of memory, the limit is {limit / 1e9:.1f}"
    return None


def check(engine) -> None:
    """Raise UserError where `train.cache` asks for what cannot be done."""
    if engine.exp.train.cache == "on" and (reason := why_not(engine)) is not None:
        raise UserError("train.cache", f"is on, but {reason}", "set train.cache=auto")


def nbytes(engine) -> int:
    """Memory that the activations take in all."""
    return sum(store.nbytes for store in _stores(engine, _prefix(engine)).values())


def fill(engine, state) -> None:
    """Compute what crosses the cut for the training and the validation examples, into `engine.stores`."""
    prefix = _prefix(engine)

    def crossing(batch):
        return prefix(state.frozen, batch)

    for split, store in _stores(engine, prefix).items():
        store.fill(engine.eval_batches(engine.sets[split]), crossing)
        engine.stores[split] = store


def _stores(engine, prefix) -> dict[str, Activations]:
    """Empty ones, which know every example's padded length."""
    _, params = chain.split(engine.model)

    @functools.cache
    def shapes(length):
        return jax.eval_shape(prefix, params, engine.abstract_batch(1, length))[2]

    stores = {}
    for split in _SPLITS:
        if split in engine.sets:
            plan = engine.eval_plan(engine.sets[split])
            lengths: list[Any] = [None] * len(engine.sets[split])
            for step in range(plan.steps_per_epoch):
                indices, weights, length = plan.batch(step)
                for index in indices[weights > 0].tolist():
                    lengths[index] = length
            stores[split] = Activations(lengths, shapes)
    return stores


def _prefix(engine):
    """The jitted (frozen, batch) -> (ids, weights, what crosses and is read), whole on every device and process."""
    kept = _kept(engine)

    def run(frozen, batch):
        crossing = engine.step.objective.prefix(frozen, batch)
        crossing = jax.tree.map(
            lambda keep, leaf: None if keep is None else leaf, kept, crossing, is_leaf=lambda x: x is None
        )
        return jax.lax.with_sharding_constraint(
            (batch["id"], batch["weight"], crossing), sharding.replicated(engine.mesh)
        )

    return jax.jit(run)


def _kept(engine):
    """What crosses the cut, abstract, with None for what no stage above it reads."""
    _, params = chain.split(engine.model)
    batch = engine.abstract_batch(2)
    crossing = jax.eval_shape(engine.step.objective.prefix, params, batch)

    def above(arguments):
        crossing, params, batch = arguments
        outputs, _ = cut.run_suffix(
            engine.model, engine.chains, engine.plan.cut, crossing, params, batch, lambda _: EVAL
        )
        return outputs["logits"], engine.task.loss(outputs, batch)

    return used(above, (crossing, params, batch))[0]
