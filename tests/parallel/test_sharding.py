# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Shardings of parameters, optimizer state and batches, on eight simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tl_jax import config
from tl_jax.parallel import mesh, sharding
from tl_jax.train import optimizer

_RULES = (
    (r".*/(query|up)/kernel", (None, "tensor")),
    (r".*/(out|down)/kernel", ("tensor", None)),
    (r".*/(query|up)/bias", ("tensor",)),
)
_SHAPES = {
    "embed/embedding": (130, 256),
    "blocks/0/up/kernel": (128, 256),
    "blocks/0/up/bias": (256,),
    "blocks/0/down/kernel": (256, 128),
    "head/kernel": (128, 3),
    "stem/kernel": (128, 128),
}
_FROZEN = {"stem/kernel"}


def _mesh(data=2, fsdp=2, tensor=2):
    return mesh.build(config.Mesh(data, fsdp, tensor))


def _abstract():
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in _SHAPES.items()}


@pytest.mark.parametrize(
    "path, shape, expected",
    [
        ("blocks/0/up/kernel", (128, 256), P("fsdp", "tensor")),
        ("blocks/0/down/kernel", (256, 128), P("tensor", "fsdp")),
        ("blocks/0/up/bias", (256,), P("tensor")),
        ("blocks/0/up/kernel", (128, 255), P("fsdp")),  # tensor does not divide 255
        ("embed/embedding", (129, 256), P(None, "fsdp")),  # nor fsdp 129
        ("embed/embedding", (512, 256), P("fsdp")),  # the largest dimension
        ("norm/scale", (256,), P()),  # small
        ("odd/kernel", (129, 255), P()),  # no dimension divides
        ("scalar", (), P()),
    ],
)
def test_spec_of_a_parameter(path, shape, expected):
    """Rules first, then fsdp on the largest dimension that is left, never on one it does not divide."""
    assert sharding.param_spec(path, shape, _mesh(), _RULES) == expected


def test_small_leaves_are_replicated():
    """`min_size` counts elements, and a leaf of exactly that size is split."""
    assert sharding.param_spec("a", (64, 4), _mesh(), min_size=256) == P("fsdp")
    assert sharding.param_spec("a", (64, 4), _mesh(), min_size=257) == P()


def test_axes_of_size_one_are_not_named():
    """On a data-only mesh every parameter is plainly replicated."""
    shardings = sharding.param_shardings(_abstract(), _mesh(8, 1, 1), _RULES)
    assert {s.spec for s in shardings.values()} == {P()}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "lamb", "adafactor", "muon"])
def test_optimizer_slots_lie_as_their_parameters(name):
    """Every slot of a parameter's shape is split as it is, all else is replicated; three steps compile once."""
    on = _mesh()
    shardings = sharding.param_shardings(_abstract(), on, _RULES)
    trained = dict.fromkeys(_SHAPES.keys() - _FROZEN, 1.0)
    tx = optimizer.build(
        config.Optimizer(name), optax.constant_schedule(0.1), lr=trained, decay=trained, frozen=_FROZEN
    )
    slots = sharding.opt_state_shardings(tx, _abstract(), shardings, on)

    params = {
        path: jax.device_put(np.ones(leaf.shape, np.float32), shardings[path]) for path, leaf in _abstract().items()
    }
    state = jax.jit(tx.init, out_shardings=slots)(params)

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(shardings, slots))
    for _ in range(3):
        params, state = step(params, state)
    assert step._cache_size() == 1

    split = 0
    for path, leaf in jax.tree.leaves_with_path(state):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        owner = keys[-1] if keys[-1] in _SHAPES else None
        whole = owner is None or leaf.shape != _SHAPES[owner]
        assert owner not in _FROZEN
        assert leaf.sharding.spec == (P() if whole else shardings[owner].spec)
        split += leaf.sharding.spec != P()
    assert split >= 1


def test_sharded_steps_equal_unsharded_ones():
    """Where the state lies does not change what is computed."""
    rng = np.random.default_rng(0)
    values = {path: rng.normal(size=shape).astype(np.float32) for path, shape in _SHAPES.items()}
    tx = optimizer.build(
        config.Optimizer("adafactor"),
        optax.constant_schedule(0.1),
        lr=dict.fromkeys(_SHAPES, 1.0),
        decay=dict.fromkeys(_SHAPES, 0.1),
    )
    on = _mesh()
    shardings = sharding.param_shardings(_abstract(), on, _RULES)
    slots = sharding.opt_state_shardings(tx, _abstract(), shardings, on)
    split = jax.device_put(values, shardings)
    got, _ = jax.jit(tx.update)(split, jax.jit(tx.init, out_shardings=slots)(split), split)
    expected, _ = jax.jit(tx.update)(values, tx.init(values), values)
    for path in values:
        # Sums over shards are added in another order.
        np.testing.assert_allclose(got[path], expected[path], rtol=1e-4, atol=1e-6)


def test_one_process_holds_all_rows():
    """Every row once, in order, also where `tensor` repeats them."""
    np.testing.assert_array_equal(sharding.process_rows(_mesh(), 12), np.arange(12))


@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1)])
def test_put_batch_deals_out_the_rows(sizes):
    """Each device gets its consecutive rows of every field, whose dtype stays."""
    batch = {"input_ids": np.arange(32, dtype=np.int32).reshape(16, 2), "mask": np.ones(16, bool)}
    on = _mesh(*sizes)
    got = sharding.put_batch(batch, on)
    portion = 16 // (sizes[0] * sizes[1])
    for field, value in batch.items():
        np.testing.assert_array_equal(got[field], value)
        assert got[field].dtype == value.dtype and got[field].sharding == sharding.batch_sharding(on)
        assert {shard.data.shape[0] for shard in got[field].addressable_shards} == {portion}


def test_put_batch_on_a_single_device():
    """A laptop's mesh of one device needs no other path."""
    on = mesh.build(config.Mesh(), jax.devices()[:1])
    got = sharding.put_batch({"x": np.arange(3.0, dtype=np.float32)}, on)
    np.testing.assert_array_equal(got["x"], [0, 1, 2])
