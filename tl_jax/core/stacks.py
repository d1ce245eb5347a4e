# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Equal stages in a row, stored as one: their arrays stacked along a first axis, their program a scan over it.

    chains = mark(chains, alike=lambda stage: stage.name in trained, least=12)
    stacks = Stacks.of(chains)
    kept = stacks.stacked(params)            # {"blocks/0..11/mlp/up/kernel": [12, D, H], ...}
    params = stacks.unstacked(kept)          # {"blocks/0/mlp/up/kernel": [D, H], ...} again

The compiler then sees a block once, however deep the network is. Rules, receipts, checkpoints and exports speak of the
single stages all the same: what is stacked is how a training state is held, nothing else.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tl_jax.core.chain import Chains, Stage


def mark(chains: Chains, alike: Callable[[Stage], Hashable], least: int) -> Chains:
    """The chains with every run of stages that can be one program told so.

    A run is a stretch of consecutive stages of one chain with equal modules, leaves and `alike`. Stages whose leaves
    others share stay single.

    Args:
      alike: what else must be equal: what trains, the side of the cut.
      least: stages of a run; shorter ones are left alone.
    """
    owners = {owner for stages in chains.values() for stage in stages for _, owner in stage.tied}

    def program(stage: Stage):
        alone = stage.name if not stage.leaves or owners.intersection(stage.paths()) else None
        return alone, stage.graphdef, stage.leaves, stage.tied, [name for name, _ in stage.varies], alike(stage)

    marked = {}
    for chain, stages in chains.items():
        marked[chain] = ()
        for _, run in itertools.groupby(stages, program):
            run = tuple(run)
            last = run[-1].name.rpartition("/")[2]
            name = f"{run[0].name}..{last}" if len(run) >= least else None
            marked[chain] += tuple(dataclasses.replace(stage, stack=name) for stage in run)
    return marked


@dataclasses.dataclass(frozen=True)
class Stacks:
    """Which leaves are held as one.

    Attributes:
      members: of every stacked path, the paths of its leaves along the first axis.
    """

    members: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, chains: Chains) -> "Stacks":
        """Those that `mark` has found; none in chains as `chain.split` gives them."""
        members: dict[str, tuple[str, ...]] = {}
        for stage in (stage for stages in chains.values() for stage in stages if stage.stack is not None):
            for (leaf, _), path in zip(stage.leaves, stage.paths(), strict=True):
                stacked = f"{stage.stack}/{leaf}"
                members[stacked] = (*members.get(stacked, ()), path)
        return cls(members)

    def __bool__(self) -> bool:
        return bool(self.members)

    @property
    def _place(self) -> dict[str, str]:
        return {path: stacked for stacked, paths in self.members.items() for path in paths}

    def paths(self, paths: Iterable[str]) -> tuple[str, ...]:
        """Where these leaves are held, each place once, in their order."""
        place = self._place
        return tuple(dict.fromkeys(place.get(path, path) for path in paths))

    def values(self, values: Mapping[str, float]) -> dict[str, float | tuple[float, ...]]:
        """Numbers by path, as many to a stacked path as it has leaves unless they are all the same."""
        found = {}
        for path in self.paths(values):
            several = tuple(values[member] for member in self.members.get(path, (path,)))
            # One alone may be traced, which no set takes.
            found[path] = several if len(several) > 1 and len(set(several)) > 1 else several[0]
        return found

    def stacked(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A flat tree of arrays or of their shapes, as it is held."""
        return {
            path: _stack([params[member] for member in self.members[path]]) if path in self.members else params[path]
            for path in self.paths(params)
        }

    def unstacked(self, tree: Any) -> Any:
        """Any tree with flat trees of held arrays in it, one array a path again."""

        def is_flat(node):
            return isinstance(node, dict) and not self.members.keys().isdisjoint(node)

        def single(node):
            if not is_flat(node):
                return node
            found = {}
            for path, leaf in node.items():
                for number, member in enumerate(self.members.get(path, ())):
                    found[member] = jax.tree.map(lambda x, number=number: _take(x, number), leaf)
                if path not in self.members:
                    found[path] = leaf
            return found

        return jax.tree.map(single, tree, is_leaf=is_flat) if self else tree

    def like(self, tree: Any, held: Any) -> Any:
        """The inverse of `unstacked`: its result, perhaps changed, as a tree of the structure of `held`."""
        if not self:
            return tree
        known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}

        def find(path, _):
            for number, key in enumerate(path):
                members = self.members.get(getattr(key, "key", None))
                if members is not None:
                    rest = (path[:number], path[number + 1 :])
                    names = [(*rest[0], jax.tree_util.DictKey(member), *rest[1]) for member in members]
                    return _stack([known[jax.tree_util.keystr(name)] for name in names])
            return known[jax.tree_util.keystr(path)]

        return jax.tree.map_with_path(find, held)


def _stack(leaves: list[Any]) -> Any:
    """Arrays, trees of arrays, or their shapes, along a new first axis that every device holds whole."""

    def one(*parts):
        assert len({(part.shape, part.dtype) for part in parts}) == 1, [(part.shape, part.dtype) for part in parts]
        place = _shifted(parts[0].sharding, lambda spec: (None, *spec))
        if isinstance(parts[0], jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((len(parts), *parts[0].shape), parts[0].dtype, sharding=place)
        return _stacker(place)(parts)

    return jax.tree.map(one, *leaves)


def _take(x: Any, number: int) -> Any:
    """One of a stack."""
    place = _shifted(x.sharding, lambda spec: spec[1:])
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=place)
    return _taker(place)(x, number)


def _shifted(place: Any, change: Callable[[tuple], tuple]) -> Any:
    """Where an array lies that has one axis more or less; None where nobody has said it."""
    return NamedSharding(place.mesh, PartitionSpec(*change(place.spec))) if isinstance(place, NamedSharding) else None


# Jitted once for all arrays that lie alike: on several processes nothing else may touch them.
@functools.cache
def _stacker(place: NamedSharding | None):
    return jax.jit(jnp.stack, out_shardings=place)


@functools.cache
def _taker(place: NamedSharding | None):
    return jax.jit(lambda x, number: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), out_shardings=place)
