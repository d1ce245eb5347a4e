# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How trained parameters move; frozen ones do not.

    tx = build(exp.optimizer, schedule, lr={"head/kernel": 10.0}, decay={"head/kernel": 0.05})
    opt_state = tx.init(trained)
    updates, opt_state = tx.update(grads, opt_state, trained)

Trees are flat, {path: array}. Rates and decays come by path, already resolved: knows no patterns. Handing it a
tree with frozen leaves in it is safe, but the step never does (the backward pass would be paid for them).
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tl_jax import config
from tl_jax.core import typed
from tl_jax.core.errors import UserError, did_you_mean

# Of one leaf; of a stack of leaves, one for each of them where they differ.
Value = float | jax.Array | tuple[float, ...]


def build(
    opt: config.Optimizer,
    schedule: optax.Schedule,
    *,
    lr: Mapping[str, Value],
    decay: Mapping[str, Value],
    since: Mapping[str, int] | None = None,
    frozen: Collection[str] = (),
) -> optax.GradientTransformation:
    """The Optax transformation of `opt`: clip, core, weight decay, rates.

    An update is -schedule(step) * lr[path] * (core(clipped gradient) + decay[path] * parameter): rates scale the decay
    too, as in `torch.optim.AdamW`. `sgd` adds the decay to the gradient before its momentum, as `torch.optim.SGD`;
    `lamb` takes its trust ratio after the decay (You et al. 2020). `adafactor` does not scale by the size of the
    parameters unless `options` has `multiply_by_parameter_scale` (Shazeer and Stern 2018, but with our own rate);
    `muon` orthogonalises the two-dimensional kernels outside `head/` and leaves the rest (embeddings, the head,
    biases, convolutions) to Adam, as `optax.contrib.muon`, whose options are its options.

    The clip's norm is over the trained leaves alone.

    Args:
      opt: `learning_rate` and the schedule's fields are not read, `schedule` has them.
      schedule: step -> learning rate.
      lr: multiple of the rate of every trained leaf, by path; several for a leaf that is a stack, one for each along
        its first axis.
      decay: weight decay by path, likewise; a leaf that is not named has none.
      since: the phase in which each trained leaf began to train, by path; 0 for all where None. Leaves that began
        together share the core's counts, so that moments which start at zero are corrected for that.
      frozen: paths that may be in the tree, get no state and come back bit for bit (but for subnormal numbers, which
        XLA's addition takes for 0; leaves that are not handed over keep them too).

    Returns:
      A transformation over flat trees whose paths are in `lr` or `frozen`, any subset of them; float leaves.

    Raises:
      UserError: `opt.options` names what the optimizer does not take, or a value of the wrong type.
    """
    core, since = _core(opt), dict.fromkeys(lr, 0) if since is None else since
    decayed = _by_value(decay, 0.0, lambda value, update, param: update + _along(value, param) * param)
    if opt.name == "sgd":
        core = optax.chain(decayed, core)
    elif opt.name == "lamb":
        core = optax.chain(core, decayed, optax.scale_by_trust_ratio())
    else:
        core = optax.chain(core, decayed)
    core = optax.partition(dict.fromkeys(map(str, {0, *since.values()}), core), _began(since))
    clip = optax.identity() if opt.clip_norm is None else optax.clip_by_global_norm(opt.clip_norm)
    rates = _by_value(lr, 1.0, lambda value, update, param: _along(value, update) * update)
    train = optax.chain(clip, core, rates, optax.scale_by_learning_rate(schedule))

    def labels(params):
        # `optax.tree_map_params` calls with a placeholder in place of the tree.
        if not isinstance(params, Mapping):
            return "train"
        unknown = [path for path in params if path not in lr and path not in frozen]
        assert not unknown, f"neither trained nor frozen: {unknown}"
        return {path: "freeze" if path in frozen else "train" for path in params}

    # Clipping inside the partition: outside, the norm, and a NaN, of frozen gradients would reach the trained leaves.
    return optax.partition({"train": train, "freeze": _HOLD}, labels)


def carried(old: Any, new: Any) -> Any:
    """`new` with every leaf of `old` that it has too, in the same place and of the same shape: what goes on training
    into another phase keeps its slots."""
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(old)}

    def choose(path, leaf):
        before = known.get(jax.tree_util.keystr(path))
        return leaf if before is None or before.shape != leaf.shape else before

    return jax.tree.map_with_path(choose, new)


def _began(since: Mapping[str, int]):
    def labels(params):
        # `optax.tree_map_params` calls with a placeholder in place of the tree.
        return {path: str(since.get(path, 0)) for path in params} if isinstance(params, Mapping) else "0"

    return labels


# Not `optax.set_to_zero`: -0.0 + 0.0 is 0.0, another bit pattern, while x + -0.0 is x for every x.
_HOLD = optax.stateless(lambda updates, _: jax.tree.map(lambda g: jnp.full_like(g, -0.0), updates))


def _by_value(values: Mapping[str, Value], neutral: float, change: Callable) -> optax.GradientTransformation:
    """`change(value, update, parameter)` of every leaf that has a value, and not the neutral one."""

    def update(updates, params):
        def one(path, update):
            value = values.get(path, neutral)
            # A traced number is never the neutral one.
            skips = isinstance(value, float | int) and value == neutral or isinstance(update, optax.MaskedNode)
            return update if skips else change(value, update, None if params is None else params[path])

        return {path: one(path, update) for path, update in updates.items()}

    return optax.stateless(update)


def _along(value: Value, leaf: jax.Array) -> float | jax.Array:
    """A number, traced or not, as it is, several along the first axis."""
    if isinstance(value, tuple):
        return jnp.asarray(value, leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))
    return value


def _sgd(momentum: float = 0.9, nesterov: bool = False, accumulator_dtype: Any = None):
    return optax.trace(momentum, nesterov, accumulator_dtype)


def _muon_dimensions(params):
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)

    def is_body_kernel(path, leaf):
        return path.endswith("/kernel") and not path.startswith("head/") and getattr(leaf, "ndim", 0) == 2

    if not isinstance(params, Mapping):
        return None
    return {path: matrix if is_body_kernel(path, leaf) else None for path, leaf in params.items()}


# The options of an optimizer are the arguments here, less those that `build` itself takes care of.
_CORES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.scale_by_adam,
    "sgd": _sgd,
    "lion": optax.scale_by_lion,
    # As in `optax.lamb`.
    "lamb": functools.partial(optax.scale_by_adam, eps=1e-6),
    "adafactor": functools.partial(optax.adafactor, multiply_by_parameter_scale=False),
    "muon": functools.partial(optax.contrib.muon, 1.0, muon_weight_dimension_numbers=_muon_dimensions),
}
_OURS = (
    *("learning_rate", "weight_decay", "weight_decay_rate", "weight_decay_mask"),
    *("adam_learning_rate", "adam_weight_decay", "muon_weight_dimension_numbers"),
)


def _core(opt: config.Optimizer) -> optax.GradientTransformation:
    make = _CORES[opt.name]
    known = {name: p.default for name, p in inspect.signature(make).parameters.items() if name not in _OURS}
    options, mistakes = {}, []
    for name, value in opt.options.items():
        if name not in known:
            mistakes.append(f"{opt.name} takes no {name!r}{did_you_mean(name, known)}")
            continue
        # A default that is a number says what is expected; None, a tuple or a name stands for several types.
        kind = type(known[name]) if isinstance(known[name], bool | int | float) else Any
        options[name] = typed.coerce(kind, value, name, mistakes)
    if mistakes:
        raise UserError("optimizer.options", "; ".join(mistakes))
    core = make(**options)
    # These two are whole optimizers in Optax: their last link is the sign.
    return optax.chain(core, optax.scale(-1.0)) if opt.name in ("adafactor", "muon") else core
