# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Bad files are refused: by one line, at once, before any tensor is read."""

import io
import json
import pathlib
import struct
import time
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

import tl_jax
from tl_jax.core.errors import UserError
from tl_jax.weights.files import WeightFiles


def container(header, data=b"") -> bytes:
    """A safetensors file with this header (text or a dict) and these bytes."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, start, end, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("data.pkl", b"\x80\x02.")
    return stream.getvalue()


def array_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


BROKEN = {
    "empty": b"",
    "shorter than a header's length": b"\x10\x00\x00",
    "header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header longer than the file": struct.pack("<Q", 5000) + b"{}",
    "not JSON": container("hello, world"),
    "a JSON list": container("[1, 2]"),
    "a number for a tensor": container({"a": 3}),
    "overlap": container({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"\0" * 12),
    "hole": container({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, b"\0" * 12),
    "negative offset": container({"a": tensor([1], -4, 0)}, b"\0" * 4),
    "offset behind the end": container({"a": tensor([4], 0, 16)}, b"\0" * 8),
    "bytes that no tensor has": container({"a": tensor([1], 0, 4)}, b"\0" * 64),
    "shape product over 2**64": container({"a": tensor([2**40, 2**40], 0, 4)}, b"\0" * 4),
    "shape and bytes that differ": container({"a": tensor([3], 0, 4)}, b"\0" * 4),
    "unknown dtype": container({"a": tensor([1], 0, 4, "F99")}, b"\0" * 4),
    "a dtype NumPy has not": container({"a": tensor([4], 0, 4, "F8_E4M3")}, b"\0" * 4),
    "a name twice": container('{"a":%s,"a":%s}' % ((json.dumps(tensor([1], 0, 4)),) * 2), b"\0" * 4),
    "a PyTorch archive": archive(),
    "an old pickle": b"\x80\x02}q\x00." + b"\0" * 40,
    "a NumPy file": array_file(),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + b"\0" * 64,
}


@pytest.fixture
def refused(monkeypatch):
    """A function that loads a folder and gives the error: one line, in under a second, with nothing read."""

    def never(*_):
        raise AssertionError("a tensor was read")

    def load(path) -> str:
        monkeypatch.setattr(WeightFiles, "read", never)
        monkeypatch.setattr(WeightFiles, "read_all", never)
        start = time.process_time()
        with pytest.raises(UserError) as error:
            tl_jax.load_pretrained(path)
        assert time.process_time() - start < 1.0
        text = str(error.value)
        assert "\n" not in text and len(text) < 600 and pathlib.Path(path).name in text
        return text

    return load


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(publish, refused, content):
    """As published weights, and as one file named by itself."""
    folder = publish(architectures=["BertModel"])
    (folder / "model.safetensors").write_bytes(content)
    refused(folder)
    refused(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_a_pickle_is_refused_with_the_way_out(publish, refused, name):
    """The message gives the command that converts it."""
    folder = publish(architectures=["BertModel"])
    (folder / "model.safetensors").rename(folder / name)
    assert "--from-torch=" in refused(folder) and name in refused(folder)


@pytest.mark.parametrize("name", ["model.npy", "tf_model.h5"])
def test_a_folder_of_other_formats_has_no_weights(publish, refused, name):
    """Only *.safetensors counts, by name and by content."""
    folder = publish(architectures=["BertModel"])
    (folder / "model.safetensors").rename(folder / name)
    assert "no *.safetensors" in refused(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"_target_": "os.system"}, "_target_"),
        ({"model_type": "perceptron"}, "perceptron"),
        ({"model_type": None}, "no family builds"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_act": "geglu"}, "geglu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(publish, refused, fields, words):
    """Code to run, an architecture there is not, a field of the wrong type or with a value not built here."""
    assert words in refused(publish(**fields))


@pytest.mark.parametrize("content", ["", "{", "[]", "\0\0"])
def test_a_config_that_is_no_object_is_refused(publish, refused, content):
    """Empty, cut off, a list, zeros."""
    folder = publish()
    (folder / "config.json").write_text(content)
    assert "config.json" in refused(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(publish, tensors, value):
    """The tensor is named, the number of such values given."""
    bad = tensors["bert.pooler.dense.weight"].copy()
    bad[3, 4] = value
    with pytest.raises(UserError, match=r"bert\.pooler\.dense\.weight holds 1 values"):
        tl_jax.load_pretrained(publish({**tensors, "bert.pooler.dense.weight": bad}))


def shards(folder, tensors, index=None) -> None:
    """Two shards instead of the one file, and their index."""
    (folder / "model.safetensors").unlink()
    names = {name: f"part-{1 + i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names if index is None else index}))


def test_shards_load_as_one_file_does(publish, tensors):
    """All parameters, from two files."""
    whole, parts = publish(name="whole"), publish(name="parts")
    shards(parts, tensors)
    expected, found = tl_jax.load_pretrained(whole).params, tl_jax.load_pretrained(parts).params
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_a_truncated_shard_is_refused(publish, tensors, refused):
    """By its name."""
    folder = publish(architectures=["BertModel"])
    shards(folder, tensors)
    content = (folder / "part-2.safetensors").read_bytes()
    (folder / "part-2.safetensors").write_bytes(content[:-100])
    assert "part-2.safetensors" in refused(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"a": "part-9.safetensors"}, "part-9.safetensors"),
        ({"a": "../part-1.safetensors"}, "outside"),
        ({"a": "/etc/passwd"}, "outside"),
        ({"a": "part-1.safetensors"}, "do not agree"),
        ({"a": 3}, "not there"),
        ([], "weight_map"),
    ],
)
def test_an_index_that_is_not_true_is_refused(publish, tensors, refused, index, words):
    """Shards that are missing, outside of the folder, or hold other tensors than it says."""
    folder = publish(architectures=["BertModel"])
    shards(folder, tensors, index)
    assert words in refused(folder)


def test_a_name_in_two_shards_is_refused(publish, tensors, refused):
    """Which of both is meant, nobody can know."""
    folder = publish(architectures=["BertModel"])
    shards(folder, tensors)
    (folder / "model.safetensors.index.json").unlink()
    text = refused(folder)
    assert "no index" in text and "part-1.safetensors" in text
