# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Dtypes, shards and meshes: what goes in comes out again, on the devices and in the files."""

import json
import warnings
import weakref

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tl_jax
from tl_jax import config
from tl_jax.core import chain
from tl_jax.core.errors import UserError
from tl_jax.parallel import mesh as meshes
from tl_jax.weights import save as saving

BF16 = np.dtype(ml_dtypes.bfloat16)


def saved(loaded, folder) -> dict[str, np.ndarray]:
    loaded.save(folder)
    return load_file(folder / "model.safetensors")


def change(loaded, path, amount):
    """Add `amount` to one parameter."""
    params = loaded.params
    chain.merge_into(loaded.model, {**params, path: params[path] + jnp.asarray(amount, params[path].dtype)})


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, np.float64])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16"])
def test_saving_gives_the_files_bytes_whatever_they_were_cast_to(publish, tensors, tmp_path, dtype, asked):
    """Also where the cast lost digits."""
    folder = publish({name: value.astype(dtype) for name, value in tensors.items()})
    loaded = tl_jax.load_pretrained(folder, dtype=asked)
    loaded.save(tmp_path / "saved")
    for name in ("model.safetensors", "config.json"):
        theirs, ours = (folder / name).read_bytes(), (tmp_path / "saved" / name).read_bytes()
        assert ours == theirs if name != "config.json" else json.loads(ours) == json.loads(theirs)


@pytest.mark.parametrize(
    ("dtype", "asked", "expected"),
    [
        (np.float32, None, "float32"),
        (np.float32, "bfloat16", "bfloat16"),
        (BF16, None, "bfloat16"),
        (BF16, "float32", "float32"),
        (np.float16, None, "float32"),
        (np.float16, "bfloat16", "bfloat16"),
        (np.float64, None, "float32"),
    ],
)
def test_dtypes_are_the_files_or_as_asked_and_the_receipt_tells(publish, tensors, dtype, asked, expected):
    """Float16 and float64, in which nothing is computed here, become float32."""
    loaded = tl_jax.load_pretrained(publish({k: v.astype(dtype) for k, v in tensors.items()}), dtype=asked)
    assert {str(leaf.dtype) for leaf in loaded.params.values()} == {expected}
    letters = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}[np.dtype(dtype).name]
    cast = None if np.dtype(dtype).name == expected else expected
    assert {(entry.dtype, entry.cast) for entry in loaded.receipt.loaded} == {(letters, cast)}
    assert (f"{len(tensors)} {letters} to {expected}" in str(loaded.receipt)) == (cast is not None)
    value = tensors["bert.pooler.dense.weight"].astype(dtype).astype(expected).T
    np.testing.assert_array_equal(loaded.params["pooler/kernel"], value)


def test_running_statistics_stay_float32(shared_data):
    """bfloat16 would lose what 0.9 and 0.1 of two near numbers add up to."""
    params = tl_jax.load_pretrained(shared_data / "weights" / "resnet20_cifar10", dtype="bfloat16").params
    wide = {path for path, leaf in params.items() if leaf.dtype == np.float32}
    assert wide == {path for path in params if path.endswith(("/mean", "/var"))}


def test_a_changed_parameter_is_written_in_the_files_dtype(publish, tensors, tmp_path):
    """It alone; all others are the file's own."""
    source = {name: value.astype(BF16) for name, value in tensors.items()}
    loaded = tl_jax.load_pretrained(publish(source), dtype="float32")
    change(loaded, "pooler/kernel", 1.0)
    files = saved(loaded, tmp_path / "saved")
    name = "bert.pooler.dense.weight"
    expected = (source[name].astype(np.float32) + 1).astype(BF16)
    assert files[name].dtype == BF16
    np.testing.assert_array_equal(files[name], expected)
    for other in source.keys() - {name}:
        assert files[other].tobytes() == source[other].tobytes()


def test_ignored_tensors_are_kept(publish, tensors, tmp_path):
    """What this network has no place for still belongs to the checkpoint."""
    folder = publish({**tensors, "bert.embeddings.position_ids": np.arange(16)[None]}, architectures=["BertModel"])
    assert (
        saved(tl_jax.load_pretrained(folder), tmp_path / "saved").keys()
        == load_file(folder / "model.safetensors").keys()
    )


def split(folder, tensors) -> dict[str, str]:
    """Two shards and their index instead of the one file; which tensor is where."""
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + (i > 9)}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        part = {name: tensors[name] for name in tensors if names[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return names


def test_shards_load_as_one_file_does(publish, tensors):
    """All parameters, from two files."""
    whole, parts = publish(name="whole"), publish(name="parts")
    split(parts, tensors)
    expected, found = tl_jax.load_pretrained(whole).params, tl_jax.load_pretrained(parts).params
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_shards_are_written_as_they_were(publish, tensors, tmp_path):
    """The same tensors in the same files, and an index that loads again."""
    folder = publish()
    names = split(folder, tensors)
    loaded = tl_jax.load_pretrained(folder)
    change(loaded, "head/bias", 1.0)
    loaded.save(tmp_path / "saved")

    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == names
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    first, second = sorted(set(names.values()))
    assert (tmp_path / "saved" / first).read_bytes() == (folder / first).read_bytes()
    assert (tmp_path / "saved" / second).read_bytes() != (folder / second).read_bytes()
    again = tl_jax.load_pretrained(tmp_path / "saved").params
    np.testing.assert_array_equal(again["head/bias"], tensors["classifier.bias"] + 1)


def test_tokenizer_and_preprocessor_files_go_along(publish, tmp_path):
    """Text files beside the weights; no code, no second copy of the weights."""
    folder = publish()
    for name in ("tokenizer.json", "vocab.txt", "evil.py", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    tl_jax.load_pretrained(folder).save(tmp_path / "saved")
    found = {file.name for file in (tmp_path / "saved").iterdir()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}


def test_a_folder_that_holds_something_is_not_written_over(publish):
    """Least of all the one that was loaded."""
    folder = publish()
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="not empty"):
        tl_jax.load_pretrained(folder).save(folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_device_of_a_mesh_holds_its_part_only(publish, tensors, tmp_path):
    """Two by `fsdp`, four by `tensor`: values, bytes and outputs are those of one device."""
    folder = publish()
    mesh = meshes.build(config.Mesh(data=1, fsdp=2, tensor=4))
    one, many = tl_jax.load_pretrained(folder), tl_jax.load_pretrained(folder, mesh=mesh)
    expected = {
        "blocks/0/attn/query/kernel": (64, 16),  # columns by `tensor`; too small for `fsdp`
        "blocks/0/attn/out/kernel": (16, 64),
        "blocks/0/mlp/up/kernel": (32, 64),  # 64 x 256: columns by `tensor`, rows by `fsdp`
        "blocks/0/mlp/down/kernel": (64, 32),
        "stem/norm/scale": (64,),
    }
    for path, leaf in many.params.items():
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            assert shard.data.shape == expected.get(path, shard.data.shape)
            np.testing.assert_array_equal(shard.data, one.params[path][shard.index])
    batch = {"input_ids": np.arange(8).reshape(2, 4)}
    # Sums are split over devices, so their order differs.
    np.testing.assert_allclose(many(batch)["logits"], one(batch)["logits"], atol=1e-5)
    assert saved(many, tmp_path / "saved").keys() == tensors.keys()
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in many.params.values())
    assert held < 0.45 * sum(leaf.nbytes for leaf in many.params.values())


@pytest.fixture
def small(monkeypatch):
    """The size of a file: three matrices of 64 x 64 float32 and a little."""
    monkeypatch.setattr(saving, "MAX_BYTES", 50_000)
    return saving.MAX_BYTES


def test_large_tensors_are_split_over_files_as_transformers_reads_them(publish, tensors, tmp_path, small):
    """In the order of the one file: none above the limit but a tensor larger than that; bytes as published."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertForSequenceClassification
    tl_jax.load_pretrained(publish()).save(tmp_path / "saved")

    files = sorted((tmp_path / "saved").glob("*.safetensors"))
    parts = [load_file(file) for file in files]
    count = len(files)
    assert count > 2
    assert [file.name for file in files] == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for part in parts:
        assert sum(value.nbytes for value in part.values()) <= small or len(part) == 1
    assert [name for part in parts for name in sorted(part)] == sorted(tensors)
    for name, value in (pair for part in parts for pair in part.items()):
        assert value.tobytes() == tensors[name].tobytes()

    model, info = BertForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = model.state_dict()
    assert all((theirs[name].numpy() == value).all() for name, value in tensors.items())
    ours = tl_jax.load_pretrained(tmp_path / "saved").params
    np.testing.assert_array_equal(ours["pooler/kernel"], tensors["bert.pooler.dense.weight"].T)


def test_files_of_a_base_in_several_stay_whatever_their_size(publish, tensors, tmp_path, small):
    """Who published them chose them."""
    folder = publish()
    split(folder, tensors)
    tl_jax.load_pretrained(folder).save(tmp_path / "saved")
    for file in folder.glob("*.safetensors"):
        assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()


def test_one_file_at_a_time_is_in_memory(publish, tmp_path, small, monkeypatch):
    """When one is written, the tensors of those before are gone."""
    alive, save_file = [], saving.save_file

    def watched(part, *args, **kwargs):
        assert not any(ref() is not None for ref in alive)
        alive.extend(weakref.ref(value) for value in part.values())
        save_file(part, *args, **kwargs)

    loaded = tl_jax.load_pretrained(publish())
    monkeypatch.setattr(saving, "save_file", watched)
    loaded.save(tmp_path / "saved")
    assert len(alive) > 20


def test_a_full_disk_leaves_nothing(publish, tmp_path, small, monkeypatch):
    """It is told in one line; what was written before is gone, and so is the folder."""
    save_file = saving.save_file

    def full(part, file, **kwargs):
        if file.name == "2.part":
            raise OSError("No space left on device")
        save_file(part, file, **kwargs)

    loaded = tl_jax.load_pretrained(publish())
    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(UserError, match="saved: could not be written .No space left"):
        loaded.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_file_is_no_folder_to_save_in(publish, tmp_path):
    """And is left alone."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        tl_jax.load_pretrained(publish()).save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
