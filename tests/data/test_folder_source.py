# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Class folders: what is read, and every way in which a folder can be wrong."""

import numpy as np
import pytest
from PIL import Image

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data.sources import folder


def build(root, *names):
    """An image at each relative path, whose red value is its position."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (i, 0, 0)).save(root / name)
    return root


def read(root, **options):
    return folder.read(Data("folder", path=str(root)), folder.Config(**options))


def test_unsplit_folder(tmp_path):
    """Labels follow the sorted class names, keys are relative paths, nested folders and hidden files are handled."""
    root = build(tmp_path, "dog/b.png", "cat/x/a.jpg", "dog/a.png")
    (root / "README.md").write_text("about")
    (root / "cat" / ".DS_Store").write_text("hidden")
    examples = read(root)["all"]
    assert examples.keys == ["cat/x/a.jpg", "dog/a.png", "dog/b.png"] and examples.classes == ("cat", "dog")
    np.testing.assert_array_equal(examples.labels, [0, 1, 1])
    np.testing.assert_array_equal(examples[2]["image"], np.tile(np.uint8([0, 0, 0]), (2, 3, 1)))
    np.testing.assert_array_equal(examples.take([1])[0]["image"][0, 0], [2, 0, 0])


def test_split_folders_with_usual_names(tmp_path):
    """`val` is the validation split."""
    sets = read(build(tmp_path, "train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png"))
    assert {name: len(examples) for name, examples in sets.items()} == {"train": 2, "validation": 2}


def test_published_set(shared_data):
    """The blood cells: 450 for training, 135 for testing, balanced (as its README says)."""
    sets = read(shared_data / "vision" / "bccd_cells")
    np.testing.assert_array_equal(np.bincount(sets["train"].labels), [150, 150, 150])
    np.testing.assert_array_equal(np.bincount(sets["test"].labels), [45, 45, 45])
    assert sets["test"][0]["image"].shape == (64, 64, 3)


def test_group_from_path(tmp_path):
    """The one group of the pattern names the patient."""
    root = build(tmp_path, "a/p1_0.png", "b/p2_0.png")
    assert read(root, group_pattern=r"(p\d+)_")["all"].groups == ["p1", "p2"]
    with pytest.raises(UserError, match="'a/p1_0.png' does not match"):
        read(root, group_pattern=r"(q\d+)_")
    for pattern in ("(", "p", "(p)(1)"):
        with pytest.raises(UserError, match="group_pattern"):
            read(root, group_pattern=pattern)


def test_every_mistake_is_in_one_error(tmp_path):
    """An empty class, a text file and a bad name are told together."""
    root = build(tmp_path, "a/0.png", "b/-1.png")
    (root / "empty").mkdir()
    (root / "a" / "notes.txt").write_text("x")
    with pytest.raises(UserError) as error:
        read(root)
    for part in ("'empty' holds no image", "'a/notes.txt' is no image", "'b/-1.png' has a name"):
        assert part in str(error.value)


def test_newline_in_a_name_stays_one_line(tmp_path):
    """The error itself must fit one line."""
    with pytest.raises(UserError, match=r"b\\nc") as error:
        read(build(tmp_path, "a/0.png", "b\nc/1.png"))
    assert "\n" not in str(error.value)


def test_class_sets_must_agree(tmp_path):
    """A class that a split lacks is named with the split."""
    with pytest.raises(UserError, match="test has no folder for 'b'"):
        read(build(tmp_path, "train/a/0.png", "train/b/1.png", "test/a/2.png"))


def test_folder_beside_train_is_an_error(tmp_path):
    """Otherwise its images would be left out unseen."""
    with pytest.raises(UserError, match="'extra' beside train"):
        read(build(tmp_path, "train/a/0.png", "extra/a/1.png"))


def test_link_out_of_the_root_is_refused(tmp_path):
    """A link can neither smuggle a file in nor count one twice."""
    build(tmp_path, "outside/secret.png")
    root = build(tmp_path / "data", "a/0.png", "b/1.png")
    (root / "a" / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "b" / "again").symlink_to(root / "a")
    with pytest.raises(UserError, match="'a/link.png' is a link.*'b/again' is a link"):
        read(root)


def test_corrupt_image_is_named_when_decoded(tmp_path):
    """Reading the folder succeeds; the record fails with its path."""
    root = build(tmp_path, "a/0.png", "b/1.png")
    (root / "b" / "1.png").write_bytes(b"not a picture")
    examples = read(root)["all"]
    with pytest.raises(UserError, match=r"b/1\.png: cannot be decoded"):
        examples[1]


@pytest.mark.parametrize("path", [None, "nothing/here"])
def test_missing_path(path):
    """Unset and absent paths say what was expected."""
    with pytest.raises(UserError, match="a folder of class folders was expected"):
        folder.read(Data("folder", path=path), folder.Config())


def test_group_field_is_refused(tmp_path):
    """Folders have no fields; the error names the option that does it."""
    with pytest.raises(UserError, match="group_pattern"):
        folder.read(Data("folder", path=str(build(tmp_path, "a/0.png")), group="patient"), folder.Config())


def test_unlabelled_folder_and_file(tmp_path):
    """For prediction: every image under a folder, or one image, without labels."""
    root = build(tmp_path, "x/0.png", "1.png")
    examples = folder.read_unlabelled(root, folder.Config(channels=1))
    assert examples.keys == ["1.png", "x/0.png"] and examples.labels is None
    assert examples[0]["image"].shape == (2, 3, 1)
    assert folder.read_unlabelled(root / "1.png", folder.Config()).keys == ["1.png"]
    (root / "x" / "0.png").rename(root / "x" / "0.doc")
    with pytest.raises(UserError, match="'x/0.doc' is no image"):
        folder.read_unlabelled(root, folder.Config())
