# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training step: a pure function, differentiated in what trains and in nothing else.

    step = Step(objective, tx, accumulate=1)
    state, metrics = step(state, batch)

`core(moving, constant, batch)` takes gradients of the trained subtree only: no live value ever touches a frozen
gradient, so neither its FLOPs, its memory, its norm nor its NaNs exist. `moving` is donated, `constant` never returned.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from tl_jax.core.barriers import compiler_options
from tl_jax.core.errors import UserError
from tl_jax.train.anchor import Anchor
from tl_jax.train.state import State

Batch = dict[str, jax.Array]

# Beyond the numbers of stages and portions, which draw from the same key.
_MIXING = 2**31 - 1


class Counted(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
      weight: float32[], how much was counted: examples, tokens. Gradients and metrics are means over it.
      stats: running statistics that changed.
      metrics: sums, float32[], to be divided by `weight`.
    """

    weight: jax.Array
    stats: dict[str, jax.Array]
    metrics: dict[str, jax.Array]


class Objective(Protocol):
    """What a step minimises."""

    def prefix(self, frozen: dict[str, jax.Array], batch: Batch) -> Any:
        """What crosses the cut; runs forward only. None where there is no cut."""

    def loss(self, trained, frozen, stats, crossing, batch: Batch, key: jax.Array) -> tuple[jax.Array, Counted]:
        """The sum of losses, float32[], and what was counted."""


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """`step(state, batch) -> (state, metrics)`, jitted; `step.fn` is the same function unjitted.

    Attributes:
      objective: the loss, split at the cut.
      tx: an Optax transformation over the trained parameters.
      accumulate: portions the batch is cut into; gradients are summed and divided by all that was counted, so the
        result is that of the whole batch however the counts are spread.
      schedule: if given, its value is reported as `learning_rate`.
      multiples: by path, what updates are multiplied with after `tx`.
      mix: (batch, key) -> batch, if given: what the step makes of the whole batch before anything else; see
        `train.mixing`.
      anchor: if given, holds trained parameters near `state.anchor`; its penalty is reported as `l2_sp`, beside `loss`.
      ema: decay of a moving average of the trained parameters in `state.ema`; 0 for none. In update number s, counted
        from 0, it is at most 1 - (1 + s)^(-2/3), as in timm's ModelEmaV3, so that the average soon forgets the start.
      teacher: (`state.teacher`, batch) -> batch with what another network says of it, if given; see `train.distill`.
      place: puts a batch of host arrays onto the mesh.
      spread: says within a program that a batch lies as `place` would put it.
      out_shardings: of `moving`, so that the second step does not compile again.
      donate: reuse the memory of what the step replaces.
    """

    objective: Objective
    tx: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    accumulate: int = 1
    schedule: optax.Schedule | None = None
    multiples: dict[str, float] | None = None
    mix: Callable[[Batch, jax.Array], Batch] | None = None
    anchor: Anchor | None = None
    ema: float = 0.0
    teacher: Callable[[dict[str, jax.Array], Batch], Batch] | None = None
    place: Callable[[Batch], Batch] | None = None
    spread: Callable[[Batch], Batch] | None = None
    out_shardings: Any = None
    donate: bool = True

    @functools.cached_property
    def core(self):
        """The jitted (moving, constant, batch) -> (moving, metrics)."""
        return self._jitted(self._core)

    @functools.cached_property
    def core_many(self):
        """The jitted (moving, constant, data, updates) -> (moving, metrics), see `many_fn`."""
        return self._jitted(self._many)

    def _jitted(self, function):
        options = {} if self.out_shardings is None else {"out_shardings": (self.out_shardings, None)}
        donated = (0,) if self.donate else ()
        return jax.jit(function, donate_argnums=donated, compiler_options=compiler_options(), **options)

    def __call__(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """One update. The arrays of `state.moving` are gone afterwards if the step donates them; within another `jit`
        it is `fn`, as a compiler's options hold for a whole program."""
        if isinstance(state.step, jax.core.Tracer):
            return self.fn(state, batch)
        if self.place is not None:
            batch = self.place(batch)
        moving, metrics = self.core(state.moving, state.constant, batch)
        return State(**moving, **state.constant), metrics

    def many(self, state: State, data: Any, updates: Any) -> tuple[State, dict[str, jax.Array]]:
        """Several updates in one dispatch; see `many_fn`, of which this is the jitted form."""
        moving, metrics = self.core_many(state.moving, state.constant, data, updates)
        return State(**moving, **state.constant), metrics

    def many_fn(self, state: State, data: Any, updates: Any) -> tuple[State, dict[str, jax.Array]]:
        """Several updates, unjitted.

        Args:
          data: all examples; see `train.kept`.
          updates: what `data.batch` takes for each, `rows` int32[M, B], `weights` float32[M, B] and `drawn`
            int32[M, B, K], and `count` int32[], how many of the M are made.

        Returns:
          The state, and the metrics float32[M] of every update, 0 for those that were not made.
        """
        moving, metrics = self._many(state.moving, state.constant, data, updates)
        return State(**moving, **state.constant), metrics

    def _many(self, moving, constant, data, updates):
        def batch(number):
            batch = data.batch(updates.rows[number], updates.weights[number], updates.drawn[number])
            return batch if self.spread is None else self.spread(batch)

        def body(number, carry):
            moving, metrics = carry
            moving, found = self._core(moving, constant, batch(number))
            return moving, {name: metrics[name].at[number].set(value) for name, value in found.items()}

        _, shapes = jax.eval_shape(lambda *given: self._core(*given, batch(0)), moving, constant)
        nothing = {name: jnp.zeros((len(updates.rows), *x.shape), x.dtype) for name, x in shapes.items()}
        return jax.lax.fori_loop(0, updates.count, body, (moving, nothing))

    def fn(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """The step unjitted, for an outer `jit`, `scan` or `vmap`."""
        moving, metrics = self._core(state.moving, state.constant, batch)
        return State(**moving, **state.constant), metrics

    def _core(self, moving, constant, batch):
        key = jax.random.fold_in(constant["key"], moving["step"])
        if self.mix is not None:
            batch = self.mix(batch, jax.random.fold_in(key, _MIXING))
        gradient = jax.value_and_grad(self.objective.loss, has_aux=True)

        def portion(stats, batch, key):
            if self.teacher is not None:
                batch = self.teacher(constant["teacher"], batch)
            crossing = self.objective.prefix(constant["frozen"], batch)
            return gradient(moving["trained"], constant["frozen"], stats, crossing, batch, key)

        if self.accumulate == 1:
            (loss, counted), grads = portion(moving["stats"], batch, key)
        else:
            (loss, counted), grads = self._accumulate(portion, moving["stats"], batch, key)
        weight = jnp.maximum(counted.weight, 1e-8)
        grads = jax.tree.map(lambda g: g / weight, grads)
        penalties = {}
        if self.anchor is not None:
            penalties["l2_sp"], pull = jax.value_and_grad(self.anchor.penalty)(moving["trained"], constant["anchor"])
            grads = jax.tree.map(jnp.add, grads, pull)
        updates, opt_state = self.tx.update(grads, moving["opt_state"], moving["trained"])
        if self.multiples is not None:
            updates = {path: update * self.multiples[path] for path, update in updates.items()}
        metrics = {
            "loss": loss / weight,
            "grad_norm": optax.tree.norm(grads),
            **{name: value / weight for name, value in counted.metrics.items()},
            **penalties,
        }
        if self.schedule is not None:
            metrics["learning_rate"] = jnp.asarray(self.schedule(moving["step"]), jnp.float32)
        after = {
            "step": moving["step"] + 1,
            "trained": optax.apply_updates(moving["trained"], updates),
            "stats": {**moving["stats"], **counted.stats},
            "opt_state": opt_state,
        }
        if self.ema:
            decay = jnp.minimum(self.ema, 1 - (1 + moving["step"].astype(jnp.float32)) ** (-2 / 3))
            old, new = moving["ema"], after["trained"]
            after["ema"] = {path: decay * old[path] + (1 - decay) * new[path] for path in old}
        return after, metrics

    def _accumulate(self, portion, stats, batch, key):
        """Sums over `accumulate` portions, one at a time."""
        rows = len(jax.tree.leaves(batch)[0])
        if rows % self.accumulate:
            raise UserError("batch", f"has {rows} examples, which {self.accumulate} portions do not divide")

        # Portion i takes rows i, i + n, …: a device then holds the same share of every portion and nothing moves.
        def cut(x):
            return jnp.moveaxis(x.reshape(x.shape[0] // self.accumulate, self.accumulate, *x.shape[1:]), 1, 0)

        portions = jax.tree.map(cut, batch)
        first = jax.tree.map(lambda x: x[0], portions)
        (loss, counted), grads = jax.eval_shape(portion, stats, first, key)
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, counted.weight, counted.metrics, grads))

        def body(carry, number_and_batch):
            stats, sums = carry
            number, batch = number_and_batch
            (loss, counted), grads = portion(stats, batch, jax.random.fold_in(key, number))
            new = loss, counted.weight, counted.metrics, grads
            return ({**stats, **counted.stats}, jax.tree.map(jnp.add, sums, new)), None

        (stats, sums), _ = jax.lax.scan(body, (stats, sums), (jnp.arange(self.accumulate), portions))
        loss, weight, metrics, grads = sums
        return (loss, Counted(weight, stats, metrics)), grads


def initial_state(
    params: dict,
    trained,
    moving,
    tx: optax.GradientTransformation,
    key,
    opt_shardings=None,
    anchor: Anchor | None = None,
    ema: bool = False,
) -> State:
    """A state at step 0.

    Args:
      params: all leaves by path.
      trained, moving: paths that train, and statistics that follow.
      key: a typed key.
      opt_shardings: of the optimizer state; None leaves it to the arrays.
      anchor: of the step that this state is for.
      ema: keep averages.
    """
    ours, stats = ({path: params[path] for path in group} for group in (trained, moving))
    init = tx.init if opt_shardings is None else functools.partial(_placed_init, tx, opt_shardings)
    return State(
        step=jnp.zeros((), jnp.int32),
        trained=ours,
        stats=stats,
        opt_state=init(ours),
        frozen={path: leaf for path, leaf in params.items() if path not in ours and path not in stats},
        key=key,
        ema={path: jnp.copy(leaf) for path, leaf in ours.items()} if ema else {},
        anchor={} if anchor is None else anchor.start(ours),
    )


def _placed_init(tx, shardings, params):
    # Left alone, jit puts the whole state on device 0, as zeros depend on no input.
    return jax.jit(tx.init, out_shardings=shardings)(params)
