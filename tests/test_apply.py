# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which source reads what a finished run is shown."""

import shutil

import makers
import pytest

from tl_jax import apply
from tl_jax.core.errors import UserError
from tl_jax.data.sources import sounds
from tl_jax.engine import build

pytestmark = pytest.mark.usefixtures("one_device")


def test_the_runs_own_source_comes_first(tmp_path):
    """A table is one of sounds for a run on sounds, of texts for all others; folders are told by what they hold."""
    table, image = tmp_path / "new.tsv", tmp_path / "images" / "a.png"
    table.write_text("text\nhello\n")
    image.parent.mkdir()
    image.touch()
    for trained_on, path, expected in (
        ("sounds", table, "sounds"),
        ("docstrings", table, "table"),
        ("squad", table, "table"),
        ("tfds", image, "folder"),
        ("table", image.parent, "folder"),
        ("folder", image.parent, "folder"),
        ("folder", tmp_path / "x.npz", "npz"),
    ):
        path.touch()
        assert apply._source_for(str(path), trained_on).__name__ == f"tl_jax.data.sources.{expected}"


def test_sounds_are_found_for_prediction(shared_data, tmp_path):
    """One file, every file under a folder, or those that a table names; the same samples each time."""
    wavs = sorted((shared_data / "speech" / "lj_speech" / "wavs").glob("*.wav"))[:2]
    (tmp_path / "deep").mkdir()
    for wav in wavs:
        shutil.copy(wav, tmp_path / "deep")
    (tmp_path / "list.csv").write_text("clip\n" + "\n".join(f"deep/{wav.name}" for wav in wavs))
    by_table = sounds.read_unlabelled(tmp_path / "list.csv", sounds.Config(sound="clip"))
    by_folder = sounds.read_unlabelled(tmp_path, sounds.Config())
    alone = sounds.read_unlabelled(tmp_path / "deep" / wavs[1].name, sounds.Config())
    assert len(by_table) == len(by_folder) == 2 and by_folder.labels is None
    assert by_folder.keys == [f"deep/{wav.name}" for wav in wavs] and alone.keys == [wavs[1].name]
    assert (by_table[1]["sound"] == alone[0]["sound"]).all() and (by_folder[1]["sound"] == alone[0]["sound"]).all()
    with pytest.raises(UserError, match="holds no sound.*wav"):
        sounds.read_unlabelled(shared_data / "text" / "sst2", sounds.Config())


def test_what_cannot_be_predicted_is_refused(tmp_path):
    """Labelled arrays, another kind of record, a file of no known form, none."""
    engine = build(makers.changed(makers.image_run(tmp_path), data__augment=()))
    (tmp_path / "new.txt").write_text("hello\n")
    (tmp_path / "notes.md").touch()
    for name, what in (
        ("images.npz", "holds labelled data"),
        ("new.txt", "holds texts, the run was trained on images"),
        ("notes.md", "is of no form that is read here"),
        ("gone.png", "no such file"),
    ):
        with pytest.raises(UserError, match=what):
            apply._unlabelled(engine, str(tmp_path / name))
