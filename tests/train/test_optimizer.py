# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizers against PyTorch and Optax's own; frozen leaves against their own bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references

from tl_jax.config import Optimizer
from tl_jax.core.errors import UserError
from tl_jax.train import optimizer

_NAMES = ("adamw", "sgd", "lion", "lamb", "adafactor", "muon")
_SHAPES = {"blocks/0/up/kernel": (6, 4), "blocks/0/up/bias": (4,), "head/kernel": (4, 3)}
_RATE = 1e-2
_FROZEN = "stem/kernel"


def _tree(seed: int, shapes=_SHAPES):
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}


def _gradients(steps: int):
    return [_tree(100 + i) for i in range(steps)]


def _build(name="adamw", *, lr=1.0, decay=0.0, clip=None, options=None, frozen=(), rate=_RATE):
    return optimizer.build(
        Optimizer(name, clip_norm=clip, options=options or {}),
        optax.constant_schedule(rate),
        lr={path: lr for path in _SHAPES},
        decay={path: decay for path in _SHAPES},
        frozen=frozen,
    )


def _run(tx, params, gradients):
    # Not jitted: operations of equal shapes are compiled once for all tests.
    state = tx.init(params)
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_what_begins_later_starts_anew_as_in_pytorch():
    """Two steps in one leaf, then two in both: AdamW of PyTorch with a parameter group added after the second step. The
    first leaf's moments go on, the second's are corrected from its own first step."""
    (torch,) = references.quiet("torch")
    first, second = "head/kernel", "blocks/0/up/kernel"
    start, gradients = _tree(0), _gradients(4)
    theirs = {path: torch.nn.Parameter(torch.tensor(np.asarray(start[path]))) for path in (first, second)}
    adamw = torch.optim.AdamW([theirs[first]], lr=_RATE, weight_decay=0.1)
    for number, grads in enumerate(gradients):
        if number == 2:
            adamw.add_param_group({"params": [theirs[second]]})
        for path, leaf in theirs.items():
            leaf.grad = torch.tensor(np.asarray(grads[path]))
        adamw.step()

    params, state = start, None
    for began, steps in (({first: 0}, gradients[:2]), ({first: 0, second: 1}, gradients[2:])):
        rates, decay = dict.fromkeys(began, 1.0), dict.fromkeys(began, 0.1)
        opt = Optimizer("adamw", clip_norm=None)
        tx = optimizer.build(opt, optax.constant_schedule(_RATE), lr=rates, decay=decay, since=began)
        ours = {path: params[path] for path in began}
        state = tx.init(ours) if state is None else optimizer.carried(state, tx.init(ours))
        for grads in steps:
            updates, state = tx.update({path: grads[path] for path in began}, state, ours)
            ours = optax.apply_updates(ours, updates)
        params = {**params, **ours}
    for path, leaf in theirs.items():
        # Four additions to a number near 1, each rounded to 6e-8, and as much in the moments.
        np.testing.assert_allclose(params[path], leaf.detach().numpy(), rtol=1e-6, atol=5e-7)


def _with_frozen(tree, leaf):
    return {**tree, _FROZEN: jnp.asarray(leaf, jnp.float32)}


_ALIASES = {
    "adamw": lambda d: optax.adamw(_RATE, weight_decay=d),
    "sgd": lambda d: optax.chain(optax.add_decayed_weights(d), optax.sgd(_RATE, momentum=0.9)),
    "lion": lambda d: optax.lion(_RATE, weight_decay=d),
    "lamb": lambda d: optax.lamb(_RATE, weight_decay=d),
    # Optax adds the decay of Adafactor after the rate, we before it.
    "adafactor": lambda d: optax.adafactor(_RATE, multiply_by_parameter_scale=False, weight_decay_rate=d * _RATE),
    "muon": lambda d: optax.contrib.muon(
        _RATE,
        weight_decay=d,
        adam_weight_decay=d,
        muon_weight_dimension_numbers={
            path: optax.contrib.MuonDimensionNumbers() if path == "blocks/0/up/kernel" else None for path in _SHAPES
        },
    ),
}


@pytest.mark.parametrize("name", _NAMES)
def test_equals_optax(name):
    """With all multiples at 1 it is the optimizer that Optax has under that name."""
    params, gradients = _tree(0), _gradients(2)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), _ALIASES[name](0.1))
    got = _run(_build(name, decay=0.1, clip=1.0), params, gradients)
    expected = _run(clipped, params, gradients)
    for path in params:
        np.testing.assert_array_equal(got[path], expected[path])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_equals_torch(name):
    """AdamW and SGD with momentum are PyTorch's, decay included."""
    import torch

    params, gradients = _tree(0), _gradients(5)
    tensors = {path: torch.nn.Parameter(torch.from_numpy(np.array(leaf))) for path, leaf in params.items()}
    if name == "adamw":
        oracle = torch.optim.AdamW(tensors.values(), lr=_RATE, weight_decay=0.1)
    else:
        oracle = torch.optim.SGD(tensors.values(), lr=_RATE, momentum=0.9, weight_decay=0.1)
    for grads in gradients:
        for path, tensor in tensors.items():
            tensor.grad = torch.from_numpy(np.array(grads[path]))
        oracle.step()

    got = _run(_build(name, decay=0.1), params, gradients)
    for path, tensor in tensors.items():
        # float32 rounding in another order of operations over five steps.
        np.testing.assert_allclose(got[path], tensor.detach().numpy(), rtol=1e-5, atol=1e-6)


_BITS = np.array([-0.0, 0.0, 1.0, 2e-38, np.inf], np.float32)


@functools.cache
def _mixed_run(name, decay, clip):
    """Two steps with a frozen leaf in the tree whose gradient is huge and NaN."""
    tx = _build(name, decay=decay, clip=clip, frozen={_FROZEN})
    gradients = [_with_frozen(grads, [1e30, -1.0, np.nan, 0.0, 1.0]) for grads in _gradients(2)]
    return _run(tx, _with_frozen(_tree(0), _BITS), gradients)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", _NAMES)
def test_frozen_leaf_keeps_its_bits(name, decay, clip):
    """Neither decay nor clipping nor a huge or NaN gradient reaches it; -0.0 stays -0.0."""
    got = np.asarray(_mixed_run(name, decay, clip)[_FROZEN])
    np.testing.assert_array_equal(got.view(np.uint32), _BITS.view(np.uint32))


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", _NAMES)
def test_frozen_gradients_do_not_reach_trained_leaves(name, clip):
    """A NaN or a huge norm in a frozen gradient changes no bit of what trains: the clip's norm leaves it out."""
    alone = _run(_build(name, decay=0.1, clip=clip), _tree(0), _gradients(2))
    mixed = _mixed_run(name, 0.1, clip)
    for path in _SHAPES:
        assert np.isfinite(mixed[path]).all()
        np.testing.assert_array_equal(mixed[path], alone[path])


@pytest.mark.parametrize("name", _NAMES)
def test_frozen_leaf_has_no_state(name):
    """The state of a tree with a frozen leaf has the arrays of the tree without it."""
    tx = _build(name, decay=0.1, clip=1.0, frozen={_FROZEN})
    alone = jax.tree.leaves(tx.init(_tree(0)))
    mixed = jax.tree.leaves(tx.init(_with_frozen(_tree(0), np.ones(1000))))
    assert [leaf.shape for leaf in mixed] == [leaf.shape for leaf in alone]


def test_clip_bounds_the_norm_of_the_trained_gradients():
    """Plain SGD's update is the rate times a gradient of norm `clip_norm`."""
    params, (grads,) = _tree(0), _gradients(1)
    tx = _build("sgd", clip=0.5, options={"momentum": 0.0})
    updates, _ = tx.update(grads, tx.init(params), params)
    norm = np.sqrt(sum((np.asarray(u, np.float64) ** 2).sum() for u in updates.values()))
    np.testing.assert_allclose(norm, 0.5 * _RATE, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "sgd", "muon"])
def test_decay_by_path(name):
    """Without a gradient every leaf shrinks by its own decay times the rate; one that is not named stays."""
    params = _tree(0)
    decay = {"blocks/0/up/kernel": 0.1, "head/kernel": 0.3}
    tx = optimizer.build(
        Optimizer(name, clip_norm=None), optax.constant_schedule(_RATE), lr=dict.fromkeys(_SHAPES, 1.0), decay=decay
    )
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for path, leaf in params.items():
        # One product of float32.
        np.testing.assert_allclose(updates[path], -_RATE * decay.get(path, 0.0) * leaf, rtol=1e-6)


@pytest.mark.parametrize("name", _NAMES)
def test_multiple_scales_the_whole_update(name):
    """A leaf at 10 moves ten times as far as at 1, its decay included; the other leaves move as before."""
    params, (grads,) = _tree(0), _gradients(1)
    base = _build(name, decay=0.1, clip=1.0)
    faster = optimizer.build(
        Optimizer(name),
        optax.constant_schedule(_RATE),
        lr={**dict.fromkeys(_SHAPES, 1.0), "head/kernel": 10.0},
        decay=dict.fromkeys(_SHAPES, 0.1),
    )
    expected, _ = base.update(grads, base.init(params), params)
    got, _ = faster.update(grads, faster.init(params), params)
    for path in params:
        # 10 times in float32, before or after the rate.
        np.testing.assert_allclose(got[path], (10 if path == "head/kernel" else 1) * expected[path], rtol=1e-6)


def test_any_subset_of_the_trained_paths_may_be_given():
    """The transformation is not tied to one tree: phases hand it fewer leaves."""
    params = {"head/kernel": _tree(0)["head/kernel"]}
    moved = _run(_build(decay=0.1, clip=1.0), params, [{"head/kernel": jnp.ones((4, 3))}])
    assert (moved["head/kernel"] != params["head/kernel"]).all()


def test_schedule_is_followed():
    """The n-th update uses the rate of step n."""
    params = {"head/kernel": jnp.zeros((4, 3))}
    tx = optimizer.build(
        Optimizer("sgd", options={"momentum": 0.0}, clip_norm=None),
        lambda step: 1.0 + step,
        lr={"head/kernel": 1.0},
        decay={},
    )
    moved = _run(tx, params, [jax.tree.map(jnp.ones_like, params)] * 3)
    np.testing.assert_array_equal(moved["head/kernel"], np.full((4, 3), -(1.0 + 2.0 + 3.0)))


def test_muon_orthogonalises_body_kernels_only():
    """The body's matrix gets an update with singular values near 1; head and bias get Adam's equal steps."""
    params, (grads,) = _tree(0), _gradients(1)
    tx = _build("muon", rate=1.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    values = np.linalg.svd(np.asarray(updates["blocks/0/up/kernel"]), compute_uv=False)
    # Five Newton-Schulz steps aim at [0.7, 1.2], not at 1 (Jordan 2024).
    assert (values > 0.6).all() and (values < 1.3).all()
    for path in ("blocks/0/up/bias", "head/kernel"):
        sizes = np.abs(updates[path])
        np.testing.assert_allclose(sizes, sizes.flat[0], rtol=1e-5)


def test_adafactor_factors_large_matrices():
    """A 128 x 256 kernel costs 128 + 256 floats of state, and a few placeholders of one."""
    params = {"head/kernel": jnp.zeros((128, 256))}
    state = _build("adafactor").init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 128 + 256 + 8


def test_options_reach_the_transform():
    """`options` changes what Optax computes."""
    params, gradients = _tree(0), _gradients(3)
    got = _run(_build("adamw", options={"b1": 0.5, "b2": 0.8}), params, gradients)
    expected = _run(optax.adamw(_RATE, b1=0.5, b2=0.8, weight_decay=0.0), params, gradients)
    np.testing.assert_allclose(got["head/kernel"], expected["head/kernel"], rtol=1e-6)


def test_wrong_options_are_refused_together():
    """Every mistake is named, with the nearest option there is."""
    with pytest.raises(UserError, match="takes no 'bb1'; did you mean 'b1'.*b2 is 'x'.*must be float"):
        _build("adamw", options={"bb1": 0.9, "b2": "x"})


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_rate_is_no_option(name):
    """What the config has a field for is not taken from `options` as well."""
    with pytest.raises(UserError, match="takes no 'learning_rate'"):
        _build(name, options={"learning_rate": 0.1})


def test_leaf_neither_trained_nor_frozen_is_a_defect():
    """A leaf that the plan forgot stops the run instead of training at a guessed rate."""
    with pytest.raises(AssertionError, match="neither trained nor frozen: .*stem/kernel"):
        _build().init(_with_frozen(_tree(0), np.ones(2)))
