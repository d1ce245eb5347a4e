# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""TFDS sets prepared here as ArrayRecord, without TensorFlow: images, texts, several labels."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data.sources import tfds as source

LABELS = (0, 1, 1, 0, 1)


def png(value: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(file, "PNG")
    file.seek(0)
    return file


class TlJaxToy(tfds.core.GeneratorBasedBuilder):
    """An image, a text, a class and a set of classes for each record."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "who": tfds.features.Text(),
            "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"])),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            tags = [0, 2] if i % 2 else []
            yield i, {"picture": png(10 * i), "caption": f"text {i}", "who": f"p{i}", "kind": LABELS[i], "tags": tags}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    TlJaxToy(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def read(folder, name="tl_jax_toy", group=None, **options):
    return source.read(Data("tfds", path=str(folder), name=name, group=group), source.Config(**options))


def test_images_and_labels_match_record_by_record(prepared):
    """TFDS shuffles on writing; the red value tells which record each is."""
    sets = read(prepared, label="kind")
    train = sets["train"]
    assert {name: len(examples) for name, examples in sets.items()} == {"train": 5, "test": 2}
    assert train.kind == "image" and train.classes == ("cat", "dog") and train.keys[3] == "train/3"
    numbers = [int(train[i]["image"][0, 0, 0]) // 10 for i in range(5)]
    assert sorted(numbers) == list(range(5)) and train[0]["image"].shape == (3, 4, 3)
    np.testing.assert_array_equal(train.labels, [LABELS[n] for n in numbers])


def test_texts_groups_and_named_splits(prepared):
    """`text` chooses the feature, `splits` cuts theirs into ours, `data.group` reads a field."""
    splits = {"train": "train[:60%]", "validation": "train[60%:]"}
    sets = read(prepared, text="caption", label="kind", group="who", splits=splits)
    assert {name: len(examples) for name, examples in sets.items()} == {"train": 3, "validation": 2}
    for examples in sets.values():
        for i in range(len(examples)):
            number = int(examples[i]["text"].removeprefix("text "))
            assert examples.groups[i] == f"p{number}" and examples.labels[i] == LABELS[number]


def test_sequence_of_classes_gives_several_labels(prepared):
    """Zeros and ones by class."""
    train = read(prepared, label="tags")["train"]
    numbers = [int(train[i]["image"][0, 0, 0]) // 10 for i in range(5)]
    np.testing.assert_array_equal(train.labels, [[n % 2, 0, n % 2] for n in numbers])


def test_mocked_catalogue_set():
    """A set of the catalogue, its code unchanged, its records made up by TFDS."""
    with tfds.testing.mock_data(num_examples=3):
        data = Data("tfds", name="imdb_reviews")
        sets = source.read(data, source.Config(splits={"train": "train"}))
        assert len(sets["train"]) == 3 and sets["train"].classes == ("neg", "pos")
        assert isinstance(sets["train"][0]["text"], str)


@pytest.mark.parametrize(
    "options, told",
    [
        ({}, "label: 2 features could be one; tl_jax_toy has kind, tags"),
        ({"label": "kin"}, "feature 'kin' is not one"),
        ({"label": "kind", "image": "caption"}, "feature 'caption' is not one; tl_jax_toy has picture"),
        ({"label": "kind", "image": "picture", "text": "caption"}, "both given"),
        ({"label": "kind", "splits": {"test": "test"}}, "no train split"),
        ({"label": "kind", "splits": {"train": "train", "dev": "test"}}, "'dev' is no split of ours"),
        ({"label": "kind", "splits": {"train": "trian"}}, "trian"),
        ({"label": "kind", "group": "whom"}, "no feature 'whom'; did you mean 'who'"),
    ],
)
def test_wrong_options_are_told(prepared, options, told):
    """With what there is to choose from."""
    with pytest.raises(UserError, match=told):
        read(prepared, **options)


def test_absent_set_is_one_clear_line(tmp_path):
    """An unknown name, with nothing to download."""
    with pytest.raises(UserError, match="no_such_set_at_all in .*cannot be prepared") as error:
        read(tmp_path, name="no_such_set_at_all")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="data.name"):
        source.read(Data("tfds"), source.Config())


def test_hidden_labels_are_refused(monkeypatch, prepared):
    """TFDS writes -1 where a published test set keeps its labels back."""
    real = source._record

    def hidden(records, position, where):
        return real(records, position, where) | {"kind": np.int64(-1)}

    monkeypatch.setattr(source, "_record", hidden)
    with pytest.raises(UserError, match=r"tl_jax_toy train/0.*has no label in \[0, 2\)"):
        read(prepared, label="kind")
