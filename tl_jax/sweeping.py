# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Many runs at once over one frozen network: learning rates, weight decays and seeds, side by side in one program.

    points = [{"optimizer.learning_rate": rate, "seed": seed} for rate in (1e-3, 3e-3) for seed in (0, 1, 2)]
    for found in sweep(exp, points):
        print(found.point, found.validation["accuracy"], found.test["accuracy"])

Every point is the run that `exp` with these fields would be: its head and adapters begin as that run's do, it sees that
run's batches in that run's order, and its best evaluation counts. What is frozen is there once, and what crosses the
cut is computed once, so that heads on kept features cost little more together than one of them alone.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import caching, closing, config, evaluation
from tl_jax.core.barriers import compiler_options
from tl_jax.core.errors import UserError, shorten
from tl_jax.data.examples import Examples
from tl_jax.engine import Engine, build, read_sets
from tl_jax.resident import Resident, Updates
from tl_jax.train import evaluate, loop
from tl_jax.train.state import State

# What points may differ in.
FIELDS = ("optimizer.learning_rate", "optimizer.weight_decay", "seed")


@dataclasses.dataclass(frozen=True)
class Found:
    """One point.

    Attributes:
      point: the fields that it was asked for.
      step: after which it was tested.
      validation, test: metrics there; empty for a split that the data has not.
    """

    point: dict[str, Any]
    step: int
    validation: Mapping[str, float]
    test: Mapping[str, float]


def sweep(
    exp: config.Experiment,
    points: Sequence[Mapping[str, Any]],
    *,
    data: Mapping[str, Examples] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Found]:
    """Train all points, and judge each on validation and test.

    Args:
      points: values of FIELDS, as `config.override` takes them.
      data: examples by split, over `exp.data` if given.
      say: is told what happens.

    Raises:
      UserError: a field that is not among them, or a config whose training set cannot stay on the devices.
    """
    unknown = sorted({field for point in points for field in point} - {*FIELDS})
    if unknown or not points:
        what = f"differ in {shorten(unknown)}" if unknown else "are none"
        raise UserError("points of a sweep", what, f"give values of {', '.join(FIELDS)}")
    sets = read_sets(exp.data) if data is None else data
    exp = _plain(exp)
    # One engine for all points that differ in their rates alone.
    engines: dict[tuple, Engine] = {}
    chosen, rates = [], []
    for point in points:
        one = config.override(exp, point)
        key = one.seed, one.optimizer.weight_decay
        if key not in engines:
            engines[key] = build(one, data=sets)
        chosen.append(key)
        rates.append(one.optimizer.learning_rate)
    first, shared = engines[chosen[0]], engines[chosen[0]].init()
    states = {key: shared if engine is first else _begun(engine, shared) for key, engine in engines.items()}
    every = exp.train.eval_every or first.steps_per_epoch
    cache = caching.Cache(first)
    if cache.why_not(shared) is None:
        cache.fill(shared, say)
        for engine in engines.values():
            engine.stores.update(first.stores)
    residents = {key: Resident(engine, every) for key, engine in engines.items()}
    reason = residents[chosen[0]].why_not()
    if reason is not None:
        raise UserError("sweep", f"needs the training set on the devices, but {reason}", "run the points one by one")
    residents[chosen[0]].load()
    say(f"{len(points)} runs of {first.steps} steps side by side")

    moving, keys = (_stacked([getattr(states[key], part) for key in chosen]) for part in ("moving", "key"))
    decays = _stacked([dict(engines[key].plan.decay) for key in chosen])
    together = _Together(first, shared, residents[chosen[0]].data)
    best = _Best(first, len(points))
    for start in range(0, first.steps, every):
        pause = min(start + every, first.steps)
        told = {key: resident.told(start, pause) for key, resident in residents.items()}
        updates = Updates(*_stacked([told[key][:3] for key in chosen]), told[chosen[0]].count)
        moving = together.train(moving, keys, jnp.asarray(rates, jnp.float32), decays, updates)
        found = together.measure(moving, "validation") if "validation" in first.sets else None
        best.see(pause, moving, found)
    tested = together.measure(best.moving, "test") if "test" in first.sets else [{}] * len(points)
    rows = zip(points, best.steps, best.found, tested)
    return [Found(dict(point), int(step), dict(seen), dict(test)) for point, step, seen, test in rows]


def _plain(exp: config.Experiment) -> config.Experiment:
    """The config without what a run alone may have.

    Raises:
      UserError: what a sweep does not do.
    """
    train = exp.train
    asked = {
        "phases": exp.phases or exp.recipe.name,
        "distill.teacher": exp.distill.teacher,
        "train.patience": train.patience,
        "data.augment": exp.data.augment and not train.cache_views,
    }
    mistakes = [name for name, value in asked.items() if value]
    if mistakes:
        raise UserError("sweep", f"takes no {shorten(mistakes)}", "leave them out, or run the points one by one")
    train = dataclasses.replace(train, resident="on", scan="off")
    return dataclasses.replace(exp, train=train, baseline={}, profile=None)


def _begun(engine: Engine, shared: State) -> State:
    """The state of a run at step 0, with what is frozen in common.

    Raises:
      UserError: what is frozen there is not what is shared.
    """
    state = engine.init()
    odd = [path for path, leaf in state.frozen.items() if not _equal(leaf, shared.frozen[path])]
    if odd:
        what = f"needs what is frozen to be the same for every seed; {shorten(odd)} is drawn anew"
        raise UserError("sweep", what, "let it train, or give all points one seed")
    return dataclasses.replace(state, frozen=shared.frozen)


def _equal(one: Any, other: Any) -> bool:
    return all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


class _Together:
    """The programs of all runs.

    Args:
      engine: of one of them; rates, decays and keys come with every call.
      shared: its state, for what is frozen.
      data: the training set, on the devices.
    """

    def __init__(self, engine: Engine, shared: State, data: Any):
        self._engine, self._data = engine, data
        self._frozen, self._anchor = shared.frozen, shared.anchor
        # All make as many updates: a count of each one's own would run the loop by masks.
        axes = (0, 0, 0, 0, Updates(0, 0, 0, None), None, None)
        self._train = jax.jit(jax.vmap(self._one, in_axes=axes), donate_argnums=0, compiler_options=compiler_options())
        self._outputs = jax.jit(self._forwards, static_argnums=3, compiler_options=compiler_options())

    def train(self, moving, keys, rates, decays, updates: Updates):
        """All runs after these updates."""
        return self._train(moving, keys, rates, decays, updates, self._data, (self._frozen, self._anchor))

    def _one(self, moving, key, rate, decay, updates, data, constant):
        frozen, anchor = constant
        tx, schedule = self._engine.optimizer_of(rate, decay)
        step = dataclasses.replace(self._engine.step, tx=tx, schedule=schedule)
        after, _ = step.many_fn(State(**moving, frozen=frozen, key=key, anchor=anchor), data, updates)
        return after.moving

    def measure(self, moving, split: str) -> list[Mapping[str, float]]:
        """Metrics of every run on a split."""
        engine = self._engine
        examples = engine.sets[split]

        def outputs(_, batch):
            found = self._outputs(moving, self._frozen, batch, engine.cut_of(batch))
            alone = ("weight", "id")
            return {name: x[0] if name in alone else jnp.moveaxis(x, 0, 1) for name, x in found.items()}

        found = evaluate.collect(outputs, None, engine.eval_batches(examples))
        found = engine.task.gathered(found, examples)
        count = len(moving["step"])
        each = [{name: value[:, run] for name, value in found.items()} for run in range(count)]
        return [evaluation.judge(engine, one, examples).metrics for one in each]

    def _forwards(self, moving, frozen, batch, cut):
        def one(moving):
            params = {**frozen, **moving["stats"], **moving["trained"], **moving.get("ema", {})}
            return self._engine.forward(params, batch, cut)

        return jax.vmap(one)(moving)


class _Best:
    """The best evaluation of every run, or the last where the config wants that."""

    def __init__(self, engine: Engine, count: int):
        self._metric, self._larger = closing.chosen_metric(engine)
        self._keeps = engine.exp.train.restore_best and "validation" in engine.sets
        self.steps = np.zeros(count, np.int64)
        self.found: list[Mapping[str, float]] = [{}] * count
        self.moving: Any = None

    def see(self, step: int, moving: Any, found: Sequence[Mapping[str, float]] | None) -> None:
        """All runs after `step` updates, and what validation says of each."""
        better = np.ones(len(self.steps), bool)
        if self._keeps and self.moving is not None:
            pairs = zip(found, self.found)
            better = np.array([loop.beats(new[self._metric], old[self._metric], self._larger) for new, old in pairs])
        self.steps[better] = step
        if found is not None:
            self.found = [new if wins else old for new, old, wins in zip(found, self.found, better)]
        # Copies: the next updates take the memory of what they replace.
        before = moving if self.moving is None else self.moving
        self.moving = _chosen(jnp.asarray(better), moving, before)


@jax.jit
def _chosen(better: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(better.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)
