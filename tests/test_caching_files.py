# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The cached cut in files: the bits of memory, found again by every run that would compute them, and by no other."""

import pathlib
import shutil

import jax
import makers
import numpy as np
import pytest
import resuming
import safetensors.numpy

from tl_jax import caching, runs
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.train import mapped
from tl_jax.train.activations import Activations

pytestmark = pytest.mark.usefixtures("one_device")


def probe(folder, **overrides):
    """Texts in two buckets, the head alone trains, cached in files that runs share."""
    exp = makers.text_run(folder, epochs=3)
    given = {"plan__preset": "linear_probe", "train__cache": "disk", "train__cache_dir": str(folder / "shared")}
    return makers.changed(exp, **{**given, **overrides})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> pathlib.Path:
    """A network, texts and the files of `probe`, to be left as they are."""
    folder = tmp_path_factory.mktemp("home")
    kept(probe(folder))
    return folder


@pytest.fixture
def copied(home, tmp_path) -> pathlib.Path:
    """The same, to be changed."""
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home"


def kept(exp):
    """What the engine's stores hold after filling, and what was said."""
    engine, said = build(exp), []
    caching.Cache(engine).fill(engine.init(), said.append)
    return {split: store.rows(np.arange(len(store.lengths)), 16) for split, store in engine.stores.items()}, said


def names(folder) -> set[str]:
    """Of the finished folders in the shared one."""
    return {path.parent.name for path in (folder / "shared").glob("*/manifest.json")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_hold_the_bits_that_memory_holds(tmp_path, dtype):
    """When they are written, and when they are found again."""
    exp = probe(tmp_path, model__dtype=dtype)
    memory, _ = kept(makers.changed(exp, train__cache="on", train__cache_dir=None))
    for word in ("computing once", "reading"):
        files, said = kept(exp)
        assert len(said) == 2 and all(word in line for line in said)
        jax.tree.map(np.testing.assert_array_equal, files, memory)


def test_a_second_run_computes_no_prefix(home, tmp_path, monkeypatch):
    """Another learning rate, another seed for the head and other dropout in it: what lies below the cut is the same."""
    changes = {"seed": 1, "optimizer__learning_rate": 1e-3, "task__options": {"pool": "mean", "dropout": 0.3}}
    filled, said = [], []
    monkeypatch.setattr(Activations, "fill", lambda *args, **more: filled.append(args))
    monkeypatch.setattr(runs.Console, "say", lambda self, text: said.append(text))
    summary = runs.run(probe(home, **changes), tmp_path / "run")
    assert summary["steps"] == 18 and not filled
    assert sum(f"reading what crosses the cut from {home / 'shared'}" in line for line in said) == 2
    assert len(names(home)) == 2


@pytest.mark.parametrize(
    "overrides,new",
    [
        ({"data__max_length": 14}, 2),
        # The few examples of validation are padded as before.
        ({"data__buckets": (10,)}, 1),
        ({"model__dtype": "bfloat16"}, 2),
        ({"train__eval_batch_size": 4}, 2),
        ({"model__config": {"hidden_act": "relu"}}, 2),
    ],
)
def test_what_decides_a_bit_decides_the_folder(copied, overrides, new):
    """What another run computed is not taken."""
    kept(probe(copied, **overrides))
    assert len(names(copied)) == 2 + new


@pytest.mark.parametrize("what,new", [("weights", 2), ("tokenizer", 2), ("text", 1)])
def test_changed_files_are_another_folder(copied, what, new):
    """One number of the embedding, the ids of two words, the order of words in one text: under names that stay."""
    if what == "weights":
        file = copied / "bert" / "model.safetensors"
        tensors = safetensors.numpy.load_file(file)
        name = next(name for name in tensors if "word_embeddings" in name)
        tensors[name][5, 0] += 1e-6
        safetensors.numpy.save_file(tensors, file)
    elif what == "tokenizer":
        file = copied / "bert" / "tokenizer.json"
        text = file.read_text()
        assert '"word1": 8' in text and '"word2": 9' in text
        file.write_text(text.replace('"word1": 8', '"word1": 9').replace('"word2": 9', '"word2": 8', 1))
    else:
        file = copied / "texts.tsv"
        lines = file.read_text().split("\n")
        line = int(build(probe(copied)).sets["train"].keys[0].rpartition(":")[2]) - 1
        text, rest = lines[line].split("\t", 1)
        lines[line] = " ".join(reversed(text.split())) + "\t" + rest
        file.write_text("\n".join(lines))
    kept(probe(copied))
    assert len(names(copied)) == 2 + new


@pytest.mark.parametrize("damage", ["truncated", "flipped", "manifest", "gone"])
def test_damage_is_told_and_computed_anew(home, copied, damage, caplog):
    """Never read as it is."""
    whole, _ = kept(probe(home))
    file = max((copied / "shared").glob("*/*.bin"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-4])
    elif damage == "flipped":
        content[len(content) // 2] ^= 16
        file.write_bytes(content)
    elif damage == "manifest":
        (file.parent / "manifest.json").write_text("{")
    else:
        file.unlink()
    again, said = kept(probe(copied, model__pretrained=str(home / "bert"), data__path=str(home / "texts.tsv")))
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert [line.split()[0] for line in said].count("computing") == 1
    assert [record for record in caplog.records if f"{file.parent} is passed over" in record.getMessage()]
    assert mapped.finished(file.parent)


def test_a_broken_off_computation_begins_anew(tmp_path, monkeypatch):
    """An exception at the second batch leaves files, and nothing that counts."""
    exp, keep, kept_batches = probe(tmp_path), Activations._keep, []

    def breaking(self, *args):
        if kept_batches:
            raise resuming.PowerCut
        kept_batches.append(keep(self, *args))

    with monkeypatch.context() as patch:
        patch.setattr(Activations, "_keep", breaking)
        with pytest.raises(resuming.PowerCut):
            kept(exp)
    assert list((tmp_path / "shared").glob("*/*.bin")) and not list((tmp_path / "shared").glob("*/manifest.json"))
    files, said = kept(exp)
    assert all("computing once" in line for line in said)
    memory, _ = kept(makers.changed(exp, train__cache="on", train__cache_dir=None))
    jax.tree.map(np.testing.assert_array_equal, files, memory)


def test_a_stopped_run_goes_on_from_its_files(tmp_path):
    """From the run's own folder, bit for bit as a run that keeps all in memory; it is gone when the run is done."""
    exp = probe(tmp_path, train__cache_dir=None)
    resuming.broken_off(exp, tmp_path / "files", (8,))
    runs.run(makers.changed(exp, train__cache="on"), tmp_path / "memory", quiet=True)
    resuming.assert_same_run(tmp_path / "files", tmp_path / "memory")
    assert not (tmp_path / "files" / "cache").exists()


def test_too_much_for_memory_goes_to_files(tmp_path, monkeypatch):
    """By itself, where there is a folder."""
    engine = build(probe(tmp_path, train__cache="auto", train__cache_dir=None))
    assert caching.Cache(engine, tmp_path / "own").place == "memory"
    monkeypatch.setattr(caching, "_SHARE", 1e-9)
    cache = caching.Cache(engine, tmp_path / "own")
    assert cache.place == "disk" and cache.why_not(engine.init()) is None


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    """`auto` goes without, `disk` is refused; what is there already needs no room."""
    exp = probe(tmp_path)
    engine = build(makers.changed(exp, train__cache="auto"))
    state = engine.init()
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "free", lambda folder: 1000)
        assert "GB left for" in caching.Cache(engine).why_not(state)
        with pytest.raises(UserError, match="train.cache_dir: .* GB left"):
            caching.Cache(build(exp)).why_not(state)
        kept(exp)
        assert caching.Cache(engine).why_not(state) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    """In one line that names it."""
    (tmp_path / "shared").write_text("a file")
    with pytest.raises(UserError, match="shared.* cannot be written"):
        kept(probe(tmp_path))


def test_a_disk_without_a_run_needs_a_folder(tmp_path):
    """In a loop of one's own nobody names one."""
    engine = build(probe(tmp_path, train__cache_dir=None))
    assert caching.Cache(engine).why_not() == "train.cache_dir is not set"
