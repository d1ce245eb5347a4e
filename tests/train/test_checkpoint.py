# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints come back bit for bit, or not at all."""

import logging
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tl_jax.core.errors import UserError
from tl_jax.train import checkpoint, manifest


def sharding(num_devices: int, *spec) -> NamedSharding:
    mesh = jax.make_mesh((num_devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices])
    return NamedSharding(mesh, PartitionSpec(*spec))


def a_state(num_devices: int = 8) -> dict:
    """What a run saves: slashes in names, two dtypes, namedtuples, keys, an empty dict, an array of size zero."""
    kernel = jax.random.normal(jax.random.key(0), (16, 4))
    trained = {"blocks/0/attn/kernel": kernel, "head/kernel": kernel[:8].astype(jnp.bfloat16), "none": kernel[:0]}
    tree = {
        "trained": trained,
        "opt_state": optax.adamw(1e-3).init(trained),
        "keys": jax.random.split(jax.random.key(7), 8),
        "step": jnp.int32(3),
        "stats": {},
    }
    return jax.tree.map(lambda x: jax.device_put(x, sharding(num_devices, *["fsdp"] * (x.ndim > 0))), tree)


def abstract(tree, num_devices: int):
    def leaf(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(num_devices, *x.sharding.spec))

    return jax.tree.map(leaf, tree)


def assert_equal_bits(actual, expected):
    def raw(x):
        keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if keys else x).tobytes()

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert (a.dtype, a.shape, raw(a)) == (b.dtype, b.shape, raw(b))


def constant(step: int) -> dict:
    return {"w": jnp.full((4, 4), step, jnp.float32), "step": jnp.int32(step)}


def abstract_constant():
    return abstract(jax.tree.map(lambda x: jax.device_put(x, sharding(1)), constant(0)), 1)


def saved(folder, steps, **options) -> checkpoint.Checkpoints:
    """Checkpoints of the steps given, or of a dict {step: metric}."""
    checkpoints = checkpoint.Checkpoints(folder, **options)
    for step in steps:
        metric = steps[step] if isinstance(steps, dict) else None
        checkpoints.save(step, constant(step), {"at": step}, metric)
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize("num_devices", [8, 2, 1])
def test_round_trip_is_bit_equal_on_any_mesh(tmp_path, num_devices):
    """Saved from 8 devices, the state returns on 8, 2 or 1: values, dtypes, containers and shardings."""
    state = a_state()
    progress = {"epoch": 2, "history": [0.1, 1e-300], "by": {"note": "é"}}
    wanted = abstract(state, num_devices)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, progress)
        tree, back = checkpoints.restore(3, wanted)

    assert back == progress
    assert_equal_bits(tree, state)
    assert jax.tree.all(jax.tree.map(lambda x, w: x.sharding == w.sharding, tree, wanted))


def test_donated_arrays_are_saved_as_they_were(tmp_path):
    """An update in place right after `save` does not reach the checkpoint."""
    x = jax.device_put(jnp.arange(1 << 20, dtype=jnp.float32), sharding(1))
    expected, wanted = np.array(x), abstract({"x": x}, 1)
    update = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x}, {})
        jax.block_until_ready(update(x))
        tree, _ = checkpoints.restore(1, wanted)
    np.testing.assert_array_equal(tree["x"], expected)


@pytest.mark.parametrize("mode, best", [("max", 2), ("min", 1)])
def test_the_newest_and_the_best_stay(tmp_path, mode, best):
    """Of five steps the last two and the best are kept; NaN is never the best, and the earlier of equals is."""
    metrics = {1: 0.1, 2: 0.9, 3: 0.9, 4: float("nan"), 5: 0.5}
    with saved(tmp_path, metrics, keep=2, metric_mode=mode) as checkpoints:
        assert checkpoints.steps() == [best, 4, 5]
        assert (checkpoints.best(), checkpoints.latest()) == (best, 5)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{step}{end}" for step in (best, 4, 5) for end in ("", ".json")}


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    """Nothing is found and nothing is made where nothing was saved."""
    with checkpoint.Checkpoints(tmp_path / "none") as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
    assert not (tmp_path / "none").exists()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_any_file_falls_back_to_the_step_before(tmp_path, caplog, name):
    """One bit flipped, a byte cut, emptied or deleted, in every file of the newest step in turn."""
    caplog.set_level(logging.WARNING, "tl_jax")
    with saved(tmp_path, {1: 0.1, 2: 0.9}, keep=2) as checkpoints:
        files = [path for path in tmp_path.glob("2/**/*") if path.is_file()] + [tmp_path / "2.json"]
        assert len(files) > 5
        for path in files:
            data = path.read_bytes()
            if not data and name != "delete":
                continue
            DAMAGES[name](path)
            caplog.clear()
            assert (checkpoints.latest(), checkpoints.best()) == (1, 1), path
            if path.name != "2.json" or name != "delete":
                assert "step 2 is passed over" in caplog.text and path.name in caplog.text
            with pytest.raises(UserError, match=path.name):
                checkpoints.restore(2, abstract_constant())
            path.write_bytes(data)
        assert checkpoints.latest() == 2


def test_every_bit_of_a_manifest_counts(tmp_path):
    """Each single flipped bit is noticed, in white space and names too."""
    with saved(tmp_path, [1]) as checkpoints:
        path = tmp_path / "1.json"
        data = path.read_bytes()
        for at in range(0, len(data), 13):
            for bit in range(8):
                path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
                with pytest.raises(manifest.Damaged):
                    manifest.read(checkpoints.folder, 1)


def test_a_damaged_step_can_be_saved_again(tmp_path):
    """A run that fell back to step 1 writes step 2 anew."""
    saved(tmp_path, [1, 2], keep=2).close()
    (tmp_path / "2" / "_CHECKPOINT_METADATA").unlink()
    with saved(tmp_path, [2], keep=2) as checkpoints:
        assert checkpoints.latest() == 2


def test_a_whole_step_is_never_replaced(tmp_path, caplog):
    """Saving it again changes no byte and says so."""
    with saved(tmp_path, [1]) as checkpoints:
        before = (tmp_path / "1.json").read_bytes()
        checkpoints.save(1, constant(5), {"at": 5})
        checkpoints.wait()
        assert (tmp_path / "1.json").read_bytes() == before
    assert "already saved" in caplog.text


def test_all_differences_of_structure_are_told_at_once(tmp_path):
    """Missing, extra, reshaped and recast leaves, in one line; Orbax would cast silently."""
    w = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=sharding(1))
    tree = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(2, jnp.bfloat16), "d": jnp.ones(2)}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"trained": tree}, {})
        with pytest.raises(UserError) as error:
            checkpoints.restore(1, {"trained": {"b": w, "c": w, "d": w, "e": w}})
    text = str(error.value)
    assert "\n" not in text and "4 leaves differ" in text and "trained/d" not in text
    assert "trained/e float32[2] was not saved" in text
    assert "trained/a float32[2] was saved and is not asked for" in text
    assert "trained/b was saved as float32[3], float32[2] is asked for" in text
    assert "trained/c was saved as bfloat16[2], float32[2] is asked for" in text


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_a_non_finite_leaf_is_never_saved(tmp_path, value):
    """The error names the leaf, and the step before stays the latest."""
    with saved(tmp_path, [1]) as checkpoints:
        bad = {"good": jnp.ones(2), "head/kernel": jnp.array([1, value], jnp.bfloat16), "n": jnp.int32(0)}
        with pytest.raises(FloatingPointError, match="in trained/head/kernel$"):
            checkpoints.save(2, {"trained": bad}, {})
        assert checkpoints.latest() == 1


def test_a_full_disk_while_orbax_writes_fails_the_step_alone(tmp_path):
    """With file sizes limited by the system, the error comes with `wait`, and the next save cleans up."""
    noise = {"w": jax.random.normal(jax.random.key(0), (1 << 16,))}
    checkpoints = saved(tmp_path, [1], keep=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        checkpoints.save(2, noise, {})
        with pytest.raises(Exception) as error:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step 2 was not saved" in error.value.__notes__[0]
    assert (checkpoints.steps(), checkpoints.latest()) == ([1], 1)
    checkpoints.save(3, noise, {})
    checkpoints.close()
    assert {path.name for path in tmp_path.iterdir()} == {"1", "1.json", "3", "3.json"}


def test_a_manifest_that_cannot_be_written_fails_the_step(tmp_path, monkeypatch):
    """Its folder is whole, yet the step does not count; the next save raises, and nothing older was deleted."""
    checkpoints = saved(tmp_path, [1])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", full)
        checkpoints.save(2, constant(2), {})
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(3, constant(3), {})
    assert (tmp_path / "2").is_dir()
    assert (checkpoints.steps(), checkpoints.latest()) == ([1], 1)
    checkpoints.close()
