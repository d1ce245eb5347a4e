# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a run keeps what crosses its cut, and the keeping.

    cache = Cache(engine)
    if cache.why_not() is None:
        cache.fill(state)          # from here on, engine's batches bring what crosses the cut instead of inputs

A frozen prefix gives the same features in every epoch. They are computed once for the training and the validation
examples, by a program of their own in index order, so an interrupted run that computes them again gets the same bits.
"""

import functools
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from tl_jax.core import chain
from tl_jax.core.chain import EVAL
from tl_jax.core.errors import UserError
from tl_jax.core.quantized import compiler_options
from tl_jax.parallel import sharding
from tl_jax.plan import cut
from tl_jax.train.activations import Activations, used

# Of the machine's memory; beyond it every epoch computes the prefix again.
_SHARE = 0.25
_SPLITS = ("train", "validation")


def check(engines: Sequence[Any]) -> None:
    """Raise UserError where `train.cache` asks for what can be done in none of a run's phases."""
    reasons = [Cache(engine).why_not() for engine in engines if engine.exp.train.cache == "on"]
    if reasons and None not in reasons:
        raise UserError("train.cache", f"is on, but {reasons[-1]}", "set train.cache=auto")


class Cache:
    """The kept activations of a run, before and after they are computed."""

    def __init__(self, engine):
        self._engine = engine

    @property
    def pays(self) -> bool:
        """Some block lies below a cut."""
        engine = self._engine
        below = [stage.name for name, stages in engine.chains.items() for stage in stages[: engine.plan.cut[name]]]
        return any(re.fullmatch(r"blocks/\d+", name) for name in below)

    def why_not(self) -> str | None:
        """What speaks against keeping them; None where nothing does."""
        engine = self._engine
        if engine.exp.train.cache == "off":
            return "train.cache is off"
        if not self.pays:
            return "no block lies below the cut"
        if not all(engine.plan.cut.values()):
            return "a chain of the network begins above the cut"
        if engine.exp.data.augment:
            return "data.augment changes the examples from epoch to epoch"
        if engine.step.teacher is not None:
            return "distill.teacher reads the inputs in every step"
        if engine.step.mix is not None:
            return "train.mixup or train.cutmix changes the images in every step"
        if engine.stop - engine.start <= engine.steps_per_epoch and engine.exp.data.sampler == "shuffle":
            return "no example is seen twice"
        if jax.tree.leaves([carry.shared for carry in self._kept.values()]):
            return "tables that belong to no example cross the cut"
        limit = _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.nbytes > limit:
            return f"it would take {self.nbytes / 1e9:.1f} GB of memory, the limit is {limit / 1e9:.1f}"
        return None

    @property
    def nbytes(self) -> int:
        """Memory that the activations take in all."""
        return sum(store.nbytes for store in self._stores.values())

    def fill(self, state) -> None:
        """Compute what crosses the cut for the training and the validation examples, into the engine's `stores`."""
        engine = self._engine
        for split, store in self._stores.items():
            store.fill(engine.eval_batches(engine.sets[split]), lambda batch: self._prefix(state.frozen, batch))
        engine.stores.update(self._stores)

    @functools.cached_property
    def _stores(self) -> dict[str, Activations]:
        """Empty ones, which know every example's padded length."""
        engine = self._engine
        _, params = chain.split(engine.model)

        @functools.cache
        def shapes(length):
            return jax.eval_shape(self._prefix, params, engine.abstract_batch(1, length))[2]

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

    @functools.cached_property
    def _prefix(self):
        """The jitted (frozen, batch) -> (ids, weights, what crosses and is read), whole on every device and process."""
        engine = self._engine

        def run(frozen, batch):
            crossing = engine.step.objective.prefix(frozen, batch)
            crossing = jax.tree.map(
                lambda keep, leaf: None if keep is None else leaf, self._kept, crossing, is_leaf=lambda x: x is None
            )
            return jax.lax.with_sharding_constraint(
                (batch["id"], batch["weight"], crossing), sharding.replicated(engine.mesh)
            )

        return jax.jit(run, compiler_options=compiler_options(engine.exp.plan.quantize))

    @functools.cached_property
    def _kept(self):
        """What crosses the cut, abstract, with None for what no stage above it reads."""
        engine = self._engine
        _, params = chain.split(engine.model)
        batch = engine.abstract_batch(2)
        crossing = jax.eval_shape(engine.step.objective.prefix, params, batch)

        def above(arguments):
            crossing, params, batch = arguments
            outputs, _ = cut.run_suffix(
                engine.model, engine.chains, engine.plan.cut, crossing, params, batch, lambda _: EVAL
            )
            losses = engine.task.loss(outputs, batch), engine.task.training_loss(outputs, batch)
            return {name: outputs[name] for name in engine.task.outputs if name in outputs}, losses

        return used(above, (crossing, params, batch))[0]
