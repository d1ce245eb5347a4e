# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The cut: per chain, the deepest stage boundary below which nothing trains, draws or follows the batch.

    below = find(chains, trained, follows, random=False, reads={})
    crossing = run_prefix(model, chains, below, frozen, batch)            # forward only
    outputs, mutable = run_suffix(model, chains, below, crossing, params, batch, modes, key)   # differentiated

The prefix runs forward only and outside of what is differentiated, so it leaves nothing behind for a backward pass;
what crosses the cut depends on the batch alone.
"""

from collections.abc import Callable, Collection, Mapping

import jax

from tl_jax.core import chain as core
from tl_jax.core.chain import EVAL, Carry, Chains, Mode, Params


def find(
    chains: Chains,
    trained: Collection[str],
    follows: Collection[str],
    random: bool,
    reads: Mapping[str, Collection[str]],
) -> dict[str, int]:
    """How many stages of each chain lie below its cut.

    Args:
      trained: paths that train.
      follows: names of stages whose running statistics follow the batch.
      random: every stage draws random numbers, so nothing lies below.
      reads: per chain, the earlier chains whose outputs enter it.
    """
    trained = set(trained)
    below: dict[str, int] = {}
    for name, stages in chains.items():
        whole = all(below[earlier] == len(chains[earlier]) for earlier in reads.get(name, ()))
        quiet = 0
        while quiet < len(stages) and whole and not random:
            stage = stages[quiet]
            if stage.name in follows or trained.intersection(stage.paths()):
                break
            quiet += 1
        below[name] = quiet
    return below


def run_prefix(
    model: core.Backbone, chains: Chains, below: Mapping[str, int], frozen: Params, batch, dtype=None
) -> dict[str, Carry]:
    """What crosses each chain's cut: the carry, with `x` after the chain's last stage where all of it lies below.

    A chain that reads one which is not finished yet has no entry; it begins after the cut.
    """
    crossing: dict[str, Carry] = {}
    first = 0
    for name, stages in chains.items():
        if below[name]:
            done = {earlier: carry.x for earlier, carry in crossing.items() if below[earlier] == len(chains[earlier])}
            carry = model.begin(name, batch, done)
            crossing[name], _ = core.run_stages(
                stages[: below[name]], frozen, carry, lambda _: EVAL, None, first, dtype
            )
        first += len(stages)
    return crossing


def run_suffix(
    model: core.Backbone,
    chains: Chains,
    below: Mapping[str, int],
    crossing: Mapping[str, Carry],
    params: Params,
    batch,
    modes: Callable[[str], Mode],
    key: jax.Array | None = None,
    dtype=None,
) -> tuple[dict[str, jax.Array], Params]:
    """From the cut to the named outputs, and the running statistics that changed.

    The key of a stage is that of its number in the whole model, so moving the cut changes no dropout mask above it.
    """
    done, mutable, first = {}, {}, 0
    for name, stages in chains.items():
        carry = crossing[name] if name in crossing else model.begin(name, batch, done)
        carry, changed = core.run_stages(stages[below[name] :], params, carry, modes, key, first + below[name], dtype)
        done[name] = carry.x
        mutable.update(changed)
        first += len(stages)
    return core.named(done[name]), mutable
