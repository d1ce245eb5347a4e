# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in one file: shapes, class names, and labels that no class belongs to."""

import json

import numpy as np
import pytest

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data.sources import npz

X = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
Y = np.array([0, 1, 2, 1])


def save(path, classes=None, **arrays):
    np.savez(path / "data.npz", **arrays)
    if classes is not None:
        (path / "classes.json").write_text(json.dumps(classes))
    return path / "data.npz"


def read(path, group=None, **options):
    return npz.read(Data("npz", path=str(path), group=group), npz.Config(**options))


def test_published_set(shared_data):
    """CIFAR-10: 150 training and 100 test pictures a class (as its README says), pixels untouched."""
    path = shared_data / "vision" / "cifar10" / "data.npz"
    sets = read(path)
    np.testing.assert_array_equal(np.bincount(sets["train"].labels), [150] * 10)
    np.testing.assert_array_equal(np.bincount(sets["test"].labels), [100] * 10)
    assert sets["train"].classes[6] == "frog" and sets["train"].keys[7] == "train/7"
    with np.load(path) as arrays:
        np.testing.assert_array_equal(sets["test"][5]["image"], arrays["x_test"][5])


def test_grey_is_repeated_or_kept(tmp_path):
    """channels=3 gives three equal channels, channels=1 the array itself."""
    path = save(tmp_path, x=X, y=Y)
    np.testing.assert_array_equal(read(path)["all"][1]["image"], np.stack([X[1]] * 3, axis=-1))
    np.testing.assert_array_equal(read(path, channels=1)["all"][1]["image"], X[1][..., None])
    assert read(path)["all"].classes == ("0", "1", "2")


def test_class_names_as_list_or_object(tmp_path):
    """Both published forms of classes.json."""
    for classes in (["a", "b", "c"], {"2": "c", "0": "a", "1": "b"}):
        assert read(save(tmp_path, classes, x=X, y=Y))["all"].classes == ("a", "b", "c")


def test_several_labels(tmp_path):
    """0/1 [N, C] labels stay a matrix; [N, 1] labels are plain ones."""
    many = np.eye(3, dtype=np.int64)[Y]
    examples = read(save(tmp_path, x=X, y=many))["all"]
    assert examples.multi_label
    np.testing.assert_array_equal(examples.labels, many)
    np.testing.assert_array_equal(read(save(tmp_path, x=X, y=Y[:, None]))["all"].labels, Y)


@pytest.mark.parametrize(
    "label, told",
    [
        (np.array([0, -1, 1, 0]), "y row 1 is -1"),
        (np.array([0, 1, 3, 0]), "y row 2: labels up to 3, classes.json names 3 classes"),
        (np.array([0, 0.5, 1, 0]), "y row 1 is 0.5"),
        (np.array([0, 1, np.nan, 0]), "y row 2 is nan"),
        (np.array([0.0, 1, 2, 1]), "y is float64, whole numbers were expected"),
        (np.array([0, 1]), "x has 4 rows, y 2"),
        (np.array(["a", "b", "c", "d"]), "whole numbers"),
        (np.array([[0, 2], [1, 1], [0, 0], [1, 0]]), "y row 0 is 2"),
    ],
)
def test_bad_labels_are_named(tmp_path, label, told):
    """Each with its row, before any training."""
    with pytest.raises(UserError, match=told):
        read(save(tmp_path, ["a", "b", "c"], x=X, y=label))


@pytest.mark.parametrize(
    "x, told",
    [(X / 255, "x is float64"), (X[:, :, 0], r"uint8\[4, 2\]"), (np.zeros((4, 3, 8, 8), np.uint8), "come last")],
)
def test_bad_images_are_told(tmp_path, x, told):
    """Type and shape, with a hint at channels first."""
    with pytest.raises(UserError, match=told):
        read(save(tmp_path, x=x, y=Y))


@pytest.mark.parametrize("arrays", [{"a": X}, {"x": X, "y": Y, "x_train": X, "y_train": Y}, {"x_train": X}])
def test_wrong_arrays_are_listed(tmp_path, arrays):
    """What the file holds and what it needs."""
    with pytest.raises(UserError, match="It needs x_train"):
        read(save(tmp_path, **{k: v.astype(np.uint8) for k, v in arrays.items()}))


def test_pickles_are_refused(tmp_path):
    """An object array would run code."""
    with pytest.raises(UserError, match="holds pickled objects"):
        read(save(tmp_path, x=np.array([{}], dtype=object), y=Y))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_unreadable_file_is_told(tmp_path, content):
    """Empty, cut, and no archive at all."""
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UserError, match="not a readable .npz file|holds pickled objects"):
        read(tmp_path / "data.npz")


@pytest.mark.parametrize("classes", [["a", "a", "b"], {"a": "0"}, "abc", [1, 2, 3]])
def test_bad_class_names_are_told(tmp_path, classes):
    """Doubled, misnumbered, and no names at all."""
    with pytest.raises(UserError, match="classes.json: is no list of class names"):
        read(save(tmp_path, classes, x=X, y=Y))


def test_groups_from_a_further_array(tmp_path):
    """`data.group` names it, and its absence is told."""
    path = save(tmp_path, x=X, y=Y, patient=np.array([7, 7, 8, 9]))
    assert read(path, group="patient")["all"].groups == ["7", "7", "8", "9"]
    with pytest.raises(UserError, match="who has 0 rows"):
        read(path, group="who")
