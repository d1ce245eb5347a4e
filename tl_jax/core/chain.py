# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Chains of stages: the unit in which freezing, rates, the cut and caching speak of a network.

    chains, params = split(model)                      # static stages, flat {path: array}
    outputs, mutable = run_chains(model, chains, params, batch, EVAL)

A Backbone is an NNX module whose `chains` name its stages in order. Each stage is split alone into a graph
definition and its arrays, and only ever merged alone, so a step never rebuilds the whole model, and any stretch of
stages can be run, differentiated or skipped by itself. Knows no family and no task.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core import barriers, paths, quantized

Params = dict[str, jax.Array]

Remat = Literal["none", "dots", "block"]

# Rates that differ from block to block of one kind: data, so that the blocks are one program all the same.
_VARIES = ("drop_path",)
# Beyond the numbers that stages fold into the same key.
_PARTS = 2**31 - 2


@dataclasses.dataclass(frozen=True)
class Mode:
    """How a stage runs: static, so that a change of mode is another program.

    Attributes:
      dropout: draw random numbers (dropout, drop path).
      batch_stats: BatchNorm normalises by the batch and its running statistics follow.
      remat: what a backward pass computes again instead of keeping it: nothing (`none`), all but the results of
        matrix products (`dots`), or everything between the stage's ends (`block`).
    """

    dropout: bool = False
    batch_stats: bool = False
    remat: Remat = "none"


EVAL = Mode()


class Context(NamedTuple):
    """What a stage sees beside `x`.

    Attributes:
      batch: per-example invariants, such as masks.
      shared: what depends on no example.
      mode: how to run.
      key: a key of this stage's own, or None where no random numbers are drawn.
      memory: of a decoder that writes word by word, see `nn.memory`; None everywhere else.
    """

    batch: Mapping[str, jax.Array]
    shared: Mapping[str, jax.Array]
    mode: Mode
    key: jax.Array | None
    memory: Any = None


class Carry(NamedTuple):
    """What flows along a chain: `x` changes from stage to stage, the others do not."""

    x: Any
    batch: Mapping[str, jax.Array]
    shared: Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage without its arrays.

    Attributes:
      name: where it sits in the model, `blocks/3`.
      graphdef: the module without arrays.
      leaves: its leaves' paths within the stage, each with True where it is a running statistic.
      tied: paths within the stage of leaves that an earlier stage owns, each with the owner's full path.
      varies: names and values of rates that the module is given before it is called, 0 in `graphdef`.
      stack: of which it is a member, see `core.stacks`; its leaves are then part of arrays under that name.
    """

    name: str
    graphdef: nnx.GraphDef
    leaves: tuple[tuple[str, bool], ...]
    tied: tuple[tuple[str, str], ...] = ()
    varies: tuple[tuple[str, Any], ...] = ()
    stack: str | None = None

    def paths(self) -> tuple[str, ...]:
        """Full paths of the leaves."""
        return tuple(f"{self.name}/{leaf}" for leaf, _ in self.leaves)

    def stats(self) -> tuple[str, ...]:
        """Full paths of the running statistics."""
        return tuple(f"{self.name}/{leaf}" for leaf, is_stat in self.leaves if is_stat)

    def named(self) -> tuple[tuple[str, str, bool], ...]:
        """(path within the stage, full path, is a running statistic) of every leaf, tied ones too."""
        own = ((leaf, f"{self.name}/{leaf}", is_stat) for leaf, is_stat in self.leaves)
        return (*own, *((leaf, owner, False) for leaf, owner in self.tied))


class Backbone(nnx.Module):
    """A network as chains of named stages.

    A family's class sets `chains`, `{"": ("stem", "blocks/0", …)}` for a network of one chain, and defines `begin`.
    A stage is a module with `stage(x, context) -> x`. The last stage leaves a dict of named outputs, or an array,
    which is then called `last_hidden_state`. A head is one more stage, `model.add_stage("head", module)`.

    A leaf that two stages share is owned by the earlier one. The later one's module has a leaf of the same shape in
    its place and a dict `tied`, for instance `{"embedding": "stem/word/embedding"}`; that leaf is no parameter.
    """

    chains: dict[str, tuple[str, ...]]

    def begin(self, chain: str, batch: Mapping[str, jax.Array], done: Mapping[str, Any]) -> Carry:
        """What enters the first stage of `chain`: reads the batch and the outputs of earlier chains, no parameter."""
        raise NotImplementedError

    def add_stage(self, name: str, module: nnx.Module) -> None:
        """Append a stage to the last chain."""
        assert not hasattr(self, name), name
        setattr(self, name, module)
        last = list(self.chains)[-1]
        self.chains = nnx.static({**self.chains, last: (*self.chains[last], name)})

    def stage(self, name: str) -> nnx.Module:
        """The module of a stage: `blocks/3` is `self.blocks[3]`."""
        module = self
        for part in name.split("/"):
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        return module

    def __call__(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Named outputs, without dropout and with running statistics."""
        chains, params = split(self)
        return run_chains(self, chains, params, batch, lambda _: EVAL)[0]


Chains = dict[str, tuple[Stage, ...]]


def split(model: Backbone) -> tuple[Chains, Params]:
    """The model's stages and its leaves by path; leaves may be abstract."""
    chains, params = {}, {}
    for chain, names in model.chains.items():
        stages = []
        for name in names:
            module = model.stage(name)
            varies = {rate: getattr(module, rate) for rate in _VARIES if hasattr(module, rate)}
            with _holding(module, dict.fromkeys(varies, 0.0)):
                graphdef, stats, rest = nnx.split(module, nnx.BatchStat, ...)
            stats, rest = (paths.flatten(nnx.as_pure(part)) for part in (stats, rest))
            tied = dict(getattr(module, "tied", {}))
            rest = {path: leaf for path, leaf in rest.items() if path not in tied}
            leaves = (*((p, True) for p in stats), *((p, False) for p in rest))
            stages.append(Stage(name, graphdef, leaves, tuple(tied.items()), tuple(varies.items())))
            params.update({f"{name}/{path}": leaf for path, leaf in {**stats, **rest}.items()})
        chains[chain] = tuple(stages)
    return chains, params


def merge_into(model: Backbone, params: Mapping[str, jax.Array]) -> None:
    """Put arrays into the model's leaves, in place."""
    for names in model.chains.values():
        for name in names:
            module = model.stage(name)
            state, tied = nnx.state(module), dict(getattr(module, "tied", {}))
            for path, variable in nnx.to_flat_state(state):
                local = "/".join(map(str, path))
                variable.set_value(params[tied.get(local, f"{name}/{local}")])
            nnx.update(module, state)


def run_stage(
    stage: Stage,
    params: Mapping[str, jax.Array],
    carry: Carry,
    mode: Mode,
    key: jax.Array | None,
    dtype=None,
    memory: Any = None,
) -> tuple[Carry, Params]:
    """Run one stage.

    Args:
      params: at least the leaves that this stage owns or shares, by full path; see `quantized` for those in few bits.
      key: the stage's key; used only if the mode draws random numbers.
      dtype: what floating parameters are cast to for computing; running statistics keep theirs.
      memory: handed to the stage.

    Returns:
      The carry with `x` replaced, and the running statistics by full path (empty unless `mode.batch_stats`).
    """

    def run(leaves, x):
        flat = [(_parts(local), _cast(leaves[path], is_stat, dtype)) for local, path, is_stat in stage.named()]
        module = nnx.merge(stage.graphdef, nnx.from_flat_state(flat))
        for rate, value in stage.varies:
            setattr(module, rate, value)
        drawn = key if mode.dropout else None
        _hand_out(module, drawn)
        x = module(x, Context(carry.batch, carry.shared, mode, drawn, memory))
        if not mode.batch_stats:
            return x, {}
        found = paths.flatten(nnx.as_pure(nnx.state(module, nnx.BatchStat)))
        return x, {f"{stage.name}/{path}": leaf for path, leaf in found.items()}

    leaves = {path: params[path] for _, path, _ in stage.named()}
    x, mutable = _again(mode.remat, functools.partial(quantized.run, run))(leaves, carry.x)
    return carry._replace(x=barriers.held(x)), mutable


def run_stages(
    stages: Sequence[Stage],
    params: Mapping[str, jax.Array],
    carry: Carry,
    modes: Callable[[str], Mode],
    key: jax.Array | None = None,
    first: int = 0,
    dtype=None,
) -> tuple[Carry, Params]:
    """Run consecutive stages.

    Args:
      modes: from a stage's name to its mode.
      key: the step's key; stage number n, counted over all chains, draws from `fold_in(key, n)`.
      first: the number of `stages[0]`.
    """
    mutable: Params = {}
    for _, run in itertools.groupby(stages, lambda stage: stage.stack or stage.name):
        run = tuple(run)
        mode = modes(run[0].name)
        if run[0].stack is not None:
            carry, changed = _run_stack(run, params, carry, mode, key, first, dtype)
        else:
            own = None if key is None else jax.random.fold_in(key, first)
            carry, changed = run_stage(run[0], params, carry, mode, own, dtype)
        mutable.update(changed)
        first += len(run)
    return carry, mutable


def _run_stack(run: Sequence[Stage], params, carry: Carry, mode: Mode, key, first: int, dtype) -> tuple[Carry, Params]:
    """All stages of a stack as one scan over its arrays; each draws from the key that it would draw from alone."""
    one = dataclasses.replace(run[0], name=run[0].stack, stack=None)
    rates = {name: [dict(stage.varies)[name] for stage in run] for name, _ in one.varies}
    # Where all are 0 nothing is drawn, and the program says so.
    rates = {name: jnp.asarray(values, jnp.float32) for name, values in rates.items() if any(values)}
    leaves = {path: params[path] for path in one.paths()}

    def body(x, layer):
        number, own, rates = layer
        stage = dataclasses.replace(one, varies=tuple({**dict.fromkeys(dict(one.varies), 0.0), **rates}.items()))
        drawn = None if key is None else jax.random.fold_in(key, number)
        after, changed = run_stage(stage, {**params, **own}, carry._replace(x=x), mode, drawn, dtype)
        return after.x, changed

    x, mutable = jax.lax.scan(body, carry.x, (jnp.arange(first, first + len(run)), leaves, rates))
    return carry._replace(x=x), mutable


def run_chains(
    model: Backbone,
    chains: Chains,
    params: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    modes: Callable[[str], Mode],
    key: jax.Array | None = None,
    dtype=None,
) -> tuple[dict[str, jax.Array], Params]:
    """Run all chains in order; the last one's outputs by name, and changed running statistics.

    `model` may be abstract: only its `begin` is used.
    """
    done: dict[str, Any] = {}
    mutable: Params = {}
    first = 0
    for chain, stages in chains.items():
        carry, changed = run_stages(stages, params, model.begin(chain, batch, done), modes, key, first, dtype)
        done[chain] = carry.x
        mutable.update(changed)
        first += len(stages)
    return named(done[chain]), mutable


def _again(remat: Remat, function: Callable) -> Callable:
    """The function, with its backward pass as `remat` says."""
    if remat == "none":
        return function
    keeps = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(function, policy=keeps)


@contextlib.contextmanager
def _holding(module: nnx.Module, values: Mapping[str, Any]) -> Iterator[None]:
    """The module with these attributes for a while."""
    before = {name: getattr(module, name) for name in values}
    # Not `setattr`: inside a trace, Flax lets nobody change a module from outside of it; this one is put back.
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def named(x: Any) -> dict[str, jax.Array]:
    """What leaves a chain, by name."""
    return dict(x) if isinstance(x, Mapping) else {"last_hidden_state": x}


def _cast(leaf: jax.Array, is_stat: bool, dtype) -> jax.Array:
    return leaf if dtype is None or is_stat or not jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.astype(dtype)


def _hand_out(module: nnx.Module, key: jax.Array | None) -> None:
    """Give a `key` of its own to every part that says `draws`: one that is called with nothing but its input."""
    if key is None:
        return
    parts = [part for _, part in nnx.iter_modules(module) if getattr(part, "draws", False)]
    for number, part in enumerate(parts):
        part.key = jax.random.fold_in(jax.random.fold_in(key, _PARTS), number)


def _parts(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))
