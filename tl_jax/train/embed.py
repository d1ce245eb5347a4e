# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The step for somebody else's module, loss and loop.

    step = make_step(model, loss_fn, Plan(train=("head/.*",)), optax.adamw(1e-3))
    state = step.init()
    for batch in batches:
        state, metrics = step(state, batch)
    model = step.merge(state)

No config, no workdir, no logger: arrays in, arrays out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from tl_jax import config
from tl_jax.core import paths
from tl_jax.core.errors import UserError
from tl_jax.parallel import sharding
from tl_jax.plan import presets
from tl_jax.train.objective import ModuleObjective
from tl_jax.train.state import State
from tl_jax.train.step import Step, initial_state


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ModuleStep(Step):
    """A `Step` that knows where its state comes from and how to put it back.

    Attributes:
      params: the module's own arrays, by path.
      trained, moving: paths that train, and those that the module updates itself.
      key: from which the keys of the loss are folded unless `init` is told another.
      shardings: of `params`; None without a mesh.
    """

    params: dict[str, jax.Array]
    trained: tuple[str, ...]
    moving: tuple[str, ...]
    key: jax.Array
    shardings: dict[str, Any] | None

    def init(self, key: jax.Array | None = None) -> State:
        """The module's own arrays at step 0. What will be donated is copied first, so the module stays usable.

        Args:
          key: a typed key from which the keys of the loss are folded; that of seed 0 if None.
        """
        key = self.key if key is None else key
        params, opt_shardings = self.params, None
        if self.shardings is not None:
            mesh = next(iter(self.shardings.values())).mesh
            params = {path: jax.device_put(leaf, self.shardings[path]) for path, leaf in params.items()}
            key = jax.device_put(key, sharding.replicated(mesh))
            ours = {path: params[path] for path in self.trained}
            opt_shardings = sharding.opt_state_shardings(self.tx, ours, self.shardings, mesh)
        moves = {*self.trained, *self.moving}
        params = {path: leaf.copy() if path in moves else leaf for path, leaf in params.items()}
        state = initial_state(params, self.trained, self.moving, self.tx, key, opt_shardings)
        if self.shardings is None:
            return state
        return dataclasses.replace(state, step=jax.device_put(state.step, key.sharding))

    def merge(self, state: State) -> nnx.Module:
        """A new module with the state's arrays. Copy what you keep if the state goes on to be donated."""
        return self.objective.merge(state.params)


def make_step(
    model: nnx.Module,
    loss_fn: Callable[..., Any],
    plan: config.Plan,
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh | None = None,
    donate: bool = True,
    accumulate: int = 1,
) -> ModuleStep:
    """A jitted, donated training step over any NNX module.

    Args:
      model: the module; it is left as it is.
      loss_fn: `loss_fn(model, batch)` or `loss_fn(model, batch, key)` -> mean loss float[], or (mean, dict of means).
        The model comes as `model` was left, with frozen BatchNorms in inference mode; a loss that calls
        `model.train()` itself undoes the latter, their running statistics still stay.
      plan: what trains, and at which multiple of the rate; `decay`, `batchnorm` and `dropout` belong to `tx`, the
        module and the loss here, and are refused, as are `last_n`, `layer_decay`, `lowest_lr`, `quantize`, adapters
        and a prompt, which need stages.
      tx: sees the trained parameters only, as a flat dict by path.
      mesh: with axes `data`, `fsdp`, `tensor`; batches are sharded by their first dimension. None for one device.
      donate: reuse the memory of the replaced arrays.
      accumulate: portions the batch is cut into; the mean over portions is the mean of their means.

    Raises:
      UserError: a pattern that matches no parameter, a field of the plan that has no meaning here.
    """
    unused = ("decay", "batchnorm", "layer_decay", "lowest_lr", "n", "rank", "adapters", "prompt", "quantize")
    given = {name for name in unused if getattr(plan, name)}
    if plan.dropout != "suffix":
        given.add("dropout")
    if plan.preset in ("last_n", "lora"):
        given.add(f"preset={plan.preset}")
    if given:
        raise UserError("plan", f"{', '.join(sorted(given))} need a Backbone with stages; this is a plain module")
    graphdef, flat, trainable = _flatten(model)
    patterns = plan.train
    if plan.preset is not None:
        patterns = (*patterns, *presets.train_patterns(plan.preset, (), trainable))
    if not patterns:
        raise UserError("plan", "trains nothing", "give plan.preset or plan.train")
    chosen = paths.matches(patterns, trainable, "plan.train")
    trained = tuple(path for path in trainable if path in chosen)
    frozen_norms = frozenset(_frozen_norms(model, chosen))
    others = [path for path in flat if path not in trainable]
    moving = tuple(path for path in others if path.rpartition("/")[0] not in frozen_norms)
    multiples = {**dict.fromkeys(trained, 1.0), **paths.first_match(plan.lr, trained, "plan.lr")}

    parts = {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(nnx.state(model))}
    objective = ModuleObjective(graphdef, parts, frozen_norms, loss_fn)
    shardings, place, out = None, None, None
    if mesh is not None:
        shardings = sharding.param_shardings(flat, mesh, ())
        ours = {path: flat[path] for path in trained}
        place = functools.partial(sharding.put_batch, mesh=mesh)
        out = {
            "step": sharding.replicated(mesh),
            "trained": {path: shardings[path] for path in trained},
            "stats": {path: shardings[path] for path in moving},
            "opt_state": sharding.opt_state_shardings(tx, ours, shardings, mesh),
        }
    return ModuleStep(
        objective,
        tx,
        params=flat,
        trained=tuple(trained),
        moving=tuple(moving),
        key=jax.random.key(0),
        shardings=shardings,
        accumulate=accumulate,
        multiples=multiples if plan.lr else None,
        place=place,
        out_shardings=out,
        donate=donate,
    )


def _flatten(model: nnx.Module):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    trainable = paths.flatten(nnx.as_pure(params))
    return graphdef, {**trainable, **paths.flatten(nnx.as_pure(rest))}, tuple(trainable)


def _frozen_norms(model: nnx.Module, trained: set[str]):
    for path, module in nnx.iter_modules(model):
        name = "/".join(map(str, path))
        if isinstance(module, nnx.BatchNorm) and not any(p.startswith(f"{name}/") for p in trained):
            yield name
