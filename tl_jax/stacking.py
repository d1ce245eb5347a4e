# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which blocks of a run are held as one.

    chains = stacking.mark(engine, stretch, anchor)        # of one phase; `core.stacks` has the mechanism

Blocks share a stack where they are one program and nothing tells them apart but their numbers: the same leaves train,
since the same phase, are kept in the same form, on one side of the cut.
"""

from tl_jax.core import stacks, target
from tl_jax.core.chain import Chains, Stage
from tl_jax.core.errors import UserError
from tl_jax.plan.phases import Stretch
from tl_jax.train.anchor import Anchor

# Of a stack that `auto` makes.
_LEAST = 24
# These treat every number by itself; the others measure whole kernels, and would measure the stack.
_ELEMENTWISE = ("adamw", "sgd", "lion")


def mark(engine, stretch: Stretch, anchor: Anchor | None) -> Chains:
    """The chains with the stacks of a phase, if the config wants any.

    Args:
      anchor: what holds trained parameters in this phase.

    Raises:
      UserError: `train.scan` is on, and no two blocks can be held as one.
    """
    asked, plan = engine.exp.train.scan, stretch.plan
    least = 2 if asked == "on" else _LEAST
    if asked == "off" or asked == "auto" and target.platform() == "cpu":
        return engine.chains
    held = anchor.loaded if anchor is not None else ()
    forms = engine.quantized.forms.values() if engine.quantized is not None else ()
    moved = [path for each in engine.stretches for path in (*each.plan.trained, *each.plan.moving)]
    groups = [frozenset(paths) for paths in (plan.trained, plan.moving, held, moved, *forms)]
    below = {stage.name for name, stages in engine.chains.items() for stage in stages[: plan.cut[name]]}

    def alike(stage: Stage):
        if stretch.optimizer.name not in _ELEMENTWISE and groups[0].intersection(stage.paths()):
            return stage.name
        kinds = [(stretch.since.get(path), *(path in group for group in groups)) for path in stage.paths()]
        return kinds, plan.modes[stage.name], stage.name in below

    chains = stacks.mark(engine.chains, alike, least)
    if asked == "on" and not stacks.Stacks.of(chains):
        why = "no two neighbouring blocks are alike, in what they compute and in what trains in them"
        if stretch.optimizer.name not in _ELEMENTWISE:
            why += f"; {stretch.optimizer.name} measures every kernel that trains by itself"
        raise UserError("train.scan", f"is on, but {why}", "set train.scan=off")
    return chains
