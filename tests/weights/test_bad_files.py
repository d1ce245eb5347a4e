# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Bad files are refused: by one line that names the file, before any tensor is read, and nothing is written.

Each row of a table is a published BERT that was spoilt in one way: how, and what the line must say.
"""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import tl_jax
from tl_jax import apply
from tl_jax.core.errors import UserError
from tl_jax.weights.files import WeightFiles

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POOLER = "bert.pooler.dense.weight"
DOWN = "bert.encoder.layer.0.output.dense.weight"


def container(header, data=b"") -> bytes:
    """A safetensors file with this header (text or a dict) and these bytes."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, start, end, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def written(write) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def archive(stream) -> None:
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("data.pkl", b"\x80\x02.")


# Contents of a file, and what the line says beside its name.
UNREADABLE, PICKLE = f"{WEIGHTS}: no readable safetensors file", "--from-torch="
CONTENTS = {
    "empty": (b"", UNREADABLE),
    "shorter than a header's length": (b"\x10\x00\x00", UNREADABLE),
    "header of 2**63 bytes": (struct.pack("<Q", 2**63) + b"{}", UNREADABLE),
    "header longer than the file": (struct.pack("<Q", 5000) + b"{}", UNREADABLE),
    "not JSON": (container("hello, world"), UNREADABLE),
    "a JSON list": (container("[1, 2]"), UNREADABLE),
    "a number for a tensor": (container({"a": 3}), UNREADABLE),
    "overlap": (container({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"\0" * 12), UNREADABLE),
    "hole": (container({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, b"\0" * 12), UNREADABLE),
    "negative offset": (container({"a": tensor([1], -4, 0)}, b"\0" * 4), UNREADABLE),
    "offset behind the end": (container({"a": tensor([4], 0, 16)}, b"\0" * 8), UNREADABLE),
    "bytes that no tensor has": (container({"a": tensor([1], 0, 4)}, b"\0" * 64), UNREADABLE),
    "shape product over 2**64": (container({"a": tensor([2**40, 2**40], 0, 4)}, b"\0" * 4), UNREADABLE),
    "shape and bytes that differ": (container({"a": tensor([3], 0, 4)}, b"\0" * 4), UNREADABLE),
    "unknown dtype": (container({"a": tensor([1], 0, 4, "F99")}, b"\0" * 4), UNREADABLE),
    "a dtype NumPy has not": (container({"a": tensor([4], 0, 4, "F8_E4M3")}, b"\0" * 4), "a (F8_E4M3)"),
    "a name twice": (container('{"a":%s,"a":%s}' % ((json.dumps(tensor([1], 0, 4)),) * 2), b"\0" * 4), "twice: a"),
    "a PyTorch archive": (written(archive), PICKLE),
    "an old pickle": (b"\x80\x02}q\x00." + b"\0" * 40, PICKLE),
    "a NumPy file": (written(lambda stream: np.save(stream, np.zeros(3))), f"{WEIGHTS}: is a NumPy file"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "is an HDF5 file"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><body>Not found</body></html>", UNREADABLE),
}


def cut(folder, tensors):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def renamed(name):
    return lambda folder, tensors: (folder / WEIGHTS).rename(folder / name)


def with_config(content=None, **fields):
    """`content` instead of config.json, or other fields in it."""

    def spoil(folder, tensors):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}) if content is None else content)

    return spoil


def with_tensors(change):
    """Other tensors, as `change` makes of them."""
    return lambda folder, tensors: save_file(change(tensors), folder / WEIGHTS)


def sharded(index=lambda names: {"weight_map": names}, spoil=lambda folder, tensors: None):
    """Two shards with an index made of {tensor: file}, then spoilt."""

    def write(folder, tensors):
        (folder / WEIGHTS).unlink()
        names = {name: f"part-{1 + i % 2}.safetensors" for i, name in enumerate(tensors)}
        for file in set(names.values()):
            save_file({name: tensors[name] for name in tensors if names[name] == file}, folder / file)
        (folder / INDEX).write_text(json.dumps(index(names)))
        spoil(folder, tensors)

    return write


def cut_shard(folder, tensors):
    content = (folder / "part-2.safetensors").read_bytes()
    (folder / "part-2.safetensors").write_bytes(content[:-100])


def without_pooler(tensors):
    return {name: value for name, value in tensors.items() if name != POOLER}


def gpt2(tensors):
    return {"wte.weight": np.ones((32, 64), np.float32), "h.0.attn.c_attn.weight": np.ones((64, 192), np.float32)}


# A folder spoilt, and what the line says.
FOLDERS = {
    "truncated": (cut, UNREADABLE),
    "no weights": (lambda folder, tensors: (folder / WEIGHTS).unlink(), "holds no *.safetensors"),
    "pytorch_model.bin": (renamed("pytorch_model.bin"), "pytorch_model.bin"),
    "model.pt": (renamed("model.pt"), PICKLE),
    "model.ckpt": (renamed("model.ckpt"), PICKLE),
    "model.npy": (renamed("model.npy"), "holds no *.safetensors"),
    "tf_model.h5": (renamed("tf_model.h5"), "holds no *.safetensors"),
    "no config.json": (lambda folder, tensors: (folder / "config.json").unlink(), "has no config.json"),
    "config: empty": (with_config(""), "config.json: not JSON"),
    "config: cut off": (with_config("{"), "config.json: not JSON"),
    "config: a list": (with_config("[]"), "config.json: is no object"),
    "config: zeros": (with_config("\0\0"), "config.json: not JSON"),
    "config: code to run": (with_config(auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "config: a function to call": (with_config(_target_="os.system"), "_target_"),
    "config: unknown architecture": (with_config(model_type="perceptron"), "perceptron"),
    "config: no architecture": (with_config(model_type=None), "no family builds"),
    "config: wrong type": (with_config(hidden_size="64"), "hidden_size"),
    "config: unknown value": (with_config(hidden_act="geglu"), "geglu"),
    "config: value not built here": (with_config(position_embedding_type="relative_key"), "position_embedding_type"),
    "config: another vocabulary": (with_config(vocab_size=33), "stem/word/embedding is [33, 64], the file has"),
    "config: another depth": (with_config(num_hidden_layers=2), "blocks/1/attn/query/kernel"),
    "transposed": (with_tensors(lambda tensors: {**tensors, DOWN: tensors[DOWN].T.copy()}), f"{DOWN} [256, 64]"),
    "missing tensor": (with_tensors(without_pooler), "no tensor: pooler/kernel"),
    "extra tensor": (with_tensors(lambda tensors: {**tensors, "stranger": np.ones(2)}), "stranger [2]"),
    "another model's tensors": (with_tensors(gpt2), "h.0.attn.c_attn.weight [64, 192], wte.weight [32, 64]"),
    "shards: one truncated": (sharded(spoil=cut_shard), "part-2.safetensors: no readable"),
    "shards: no index": (sharded(spoil=lambda folder, tensors: (folder / INDEX).unlink()), "no index: part-1"),
    "shards: a tensor in both": (
        sharded(spoil=lambda folder, tensors: save_file(tensors, folder / "part-2.safetensors")),
        f"{INDEX}: and part-2.safetensors do not agree",
    ),
    "index: not JSON": (
        sharded(spoil=lambda folder, tensors: (folder / INDEX).write_text('{"weight_map":')),
        "weight_map",
    ),
    "index: a list": (sharded(lambda names: {"weight_map": []}), "weight_map"),
    "index: a number for a file": (sharded(lambda names: {"weight_map": {POOLER: 3}}), "not there: 3"),
    "index: a missing shard": (
        sharded(lambda names: {"weight_map": {**names, POOLER: "part-9.safetensors"}}),
        "not there: part-9.safetensors",
    ),
    "index: a tensor that the shard lacks": (
        sharded(lambda names: {"weight_map": {**names, "a": "part-1.safetensors"}}),
        "part-1.safetensors do not agree on a.",
    ),
    "index: lacks a tensor": (
        sharded(lambda names: {"weight_map": {name: file for name, file in names.items() if name != POOLER}}),
        f"do not agree on {POOLER}",
    ),
    "index: a file above the folder": (sharded(lambda names: {"weight_map": {"a": "../x.safetensors"}}), "outside"),
    "index: an absolute path": (sharded(lambda names: {"weight_map": {"a": "/etc/passwd"}}), "outside"),
}

CASES = FOLDERS | {
    name: (lambda folder, tensors, content=content: (folder / WEIGHTS).write_bytes(content), words)
    for name, (content, words) in CONTENTS.items()
}


def refusal(path, out) -> str:
    """What is said of `path` by the command that reads and writes weights; `out` must not have been made."""
    with pytest.raises(UserError) as error:
        apply.convert(str(path), str(out))
    text = str(error.value)
    assert "\n" not in text and len(text) < 1000 and str(path) in text
    assert not out.exists()
    return text


@pytest.fixture
def nothing_read(monkeypatch):
    """Reading a tensor is a failure."""

    def never(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(WeightFiles, "read", never)
    monkeypatch.setattr(WeightFiles, "read_all", never)


@pytest.mark.parametrize(("spoil", "words"), CASES.values(), ids=CASES)
def test_a_bad_checkpoint_is_refused(publish, tensors, nothing_read, tmp_path, spoil, words):
    """From headers alone, by a line that says what is wrong with which file."""
    folder = publish()
    spoil(folder, tensors)
    assert words in refusal(folder, tmp_path / "out")


def test_a_bad_file_named_by_itself_is_refused(publish, nothing_read, tmp_path):
    """Without its folder: the file's own name stands in the line."""
    folder = publish()
    (folder / WEIGHTS).write_bytes(b"")
    assert UNREADABLE in refusal(folder / WEIGHTS, tmp_path / "out")


@pytest.mark.parametrize("path", ["nowhere", "nowhere.safetensors", "bert/nowhere.safetensors"])
def test_what_is_not_there_is_refused(publish, tmp_path, path):
    """A folder, a file, a file in a folder that there is."""
    publish()
    assert "no such file or folder" in refusal(tmp_path / path, tmp_path / "out")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(publish, tensors, tmp_path, dtype, value):
    """The tensor is named, the number of such values given; headers do not show it."""
    bad = tensors[POOLER].astype(dtype)
    bad[3, 4] = bad[0, 0] = value
    folder = publish({**tensors, POOLER: bad})
    assert f"{POOLER} holds 2 values that are NaN or infinite" in refusal(folder, tmp_path / "out")


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_kernel_of_zeros_is_refused(publish, tensors, tmp_path, dtype):
    """What an interrupted download leaves behind a whole header."""
    folder = publish({**tensors, DOWN: np.zeros_like(tensors[DOWN], dtype)})
    assert f"{DOWN} holds nothing but zeros" in refusal(folder, tmp_path / "out")


def test_zeros_that_are_published_load(publish, tensors):
    """Biases, the table of segments that RoBERTa has no use for, and a kernel whose values add up to zero."""
    even = np.tile(np.float32([1, -1]), tensors[POOLER].size // 2).reshape(tensors[POOLER].shape)
    zeros = ["bert.pooler.dense.bias", "bert.embeddings.token_type_embeddings.weight"]
    values = {**tensors, POOLER: even, **{name: np.zeros_like(tensors[name]) for name in zeros}}
    params = tl_jax.load_pretrained(publish(values)).params
    assert not params["pooler/bias"].any() and not params["stem/type/embedding"].any()
    np.testing.assert_array_equal(params["pooler/kernel"], even.T)


def test_large_finite_values_load(publish, tensors):
    """Their sum overflows, they do not."""
    large = np.full_like(tensors[POOLER], 3e38)
    assert (tl_jax.load_pretrained(publish({**tensors, POOLER: large})).params["pooler/kernel"] == large[0, 0]).all()
