# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Names and shapes: what fits is paired, what does not is told before anything is read."""

import jax
import numpy as np
import pytest
from flax import nnx

import tl_jax
from tl_jax import loading, pretrained
from tl_jax.core import chain
from tl_jax.core.errors import UserError
from tl_jax.models import resnet
from tl_jax.weights.files import TensorInfo
from tl_jax.weights.match import source_that_fits


def refusal(folder) -> str:
    with pytest.raises(UserError) as error:
        tl_jax.load_pretrained(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def load_with_fresh(folder, fresh, classes=5):
    """Parameters and receipt with a head of `classes` classes."""
    labels = {str(i): str(i) for i in range(classes)}
    checkpoint = loading.open_checkpoint(str(folder), overrides={"id2label": labels})
    task, _ = pretrained.published_head(checkpoint)
    add_head = loading.adder(task)
    loaded = loading.load(checkpoint, loading.abstract(checkpoint, add_head), add_head, fresh=fresh)
    return loaded.params, loaded.receipt


def test_a_file_of_the_bare_backbone_lacks_the_prefix(publish, tensors):
    """`encoder.layer.0…` fills what `bert.encoder.layer.0…` fills."""
    bare = {name.removeprefix("bert."): value for name, value in tensors.items() if name.startswith("bert.")}
    expected, found = (
        tl_jax.load_pretrained(publish()),
        tl_jax.load_pretrained(publish(bare, "bare", architectures=["BertModel"])),
    )
    assert found.params.keys() == {path for path in expected.params if not path.startswith("head/")}
    for path, value in found.params.items():
        np.testing.assert_array_equal(value, expected.params[path])


def test_names_of_old_files_are_known(publish, tensors):
    """`LayerNorm.gamma` is `LayerNorm.weight`."""
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    found = tl_jax.load_pretrained(publish(old)).params
    np.testing.assert_array_equal(found["stem/norm/scale"], tensors["bert.embeddings.LayerNorm.weight"])


def test_two_names_of_one_tensor_are_refused(publish, tensors):
    """Which of both is meant, nobody can know."""
    text = refusal(publish({**tensors, "pooler.dense.bias": tensors["bert.pooler.dense.bias"]}))
    assert "bert.pooler.dense.bias" in text and "two names of one tensor" in text


def test_a_head_of_another_size_is_refused_with_the_way_out(publish):
    """The file has 3 classes, config.json 5."""
    labels = {str(i): str(i) for i in range(5)}
    text = refusal(publish(id2label=labels))
    assert "head/kernel is [64, 5]" in text and "classifier.weight [3, 64]" in text
    assert "model.fresh=('head/.*',)" in text


def test_a_fresh_head_leaves_the_files_one_out(publish, tensors):
    """Its tensors are named as dropped, its parameters as fresh; all else is loaded."""
    params, receipt = load_with_fresh(publish(), ("head/.*",))
    assert params["head/kernel"].shape == (64, 5)
    assert receipt.fresh == ("head/bias", "head/kernel")
    assert set(receipt.dropped) == {"classifier.weight", "classifier.bias"}
    assert sum(len(entry.tensors) for entry in receipt.loaded) == len(tensors) - 2


def test_a_fresh_pattern_that_matches_nothing_is_refused(publish):
    """A misspelt one would silently keep the old head."""
    with pytest.raises(UserError, match="matches nothing"):
        load_with_fresh(publish(), ("haed/.*",), classes=3)


def test_all_mistakes_are_told_at_once(publish, tensors):
    """A missing tensor, a stranger, a wrong shape, in one line."""
    wrong = {**tensors, "stranger": np.zeros((2, 3), np.float32)}
    wrong["bert.encoder.layer.0.output.dense.bias"] = np.zeros(7, np.float32)
    del wrong["bert.encoder.layer.0.intermediate.dense.weight"]
    text = refusal(publish(wrong))
    assert "blocks/0/mlp/down/bias is [64]" in text and "[7]" in text
    assert "1 of 25 parameters found no tensor: blocks/0/mlp/up/kernel float32[64, 256]" in text
    assert "1 of 25 tensors found no parameter: stranger [2, 3]" in text


def test_the_nearest_unused_tensor_is_offered(publish, tensors):
    """A renamed tensor stands beside the parameter it was meant for."""
    renamed = {name.replace("classifier", "header"): value for name, value in tensors.items()}
    assert "nearest unused tensor: 'header." in refusal(publish(renamed))


def test_every_tensor_and_parameter_stands_in_the_receipt(publish, tensors):
    """Loaded, dropped or ignored; loaded or fresh."""
    with_ids = {**tensors, "bert.embeddings.position_ids": np.arange(16)[None]}
    loaded = tl_jax.load_pretrained(publish(with_ids, architectures=["BertModel"]))
    receipt = loaded.receipt
    named = [name for entry in receipt.loaded for name in entry.tensors]
    assert sorted([*named, *receipt.dropped, *receipt.ignored]) == sorted(with_ids)
    assert set(receipt.ignored) == {"bert.embeddings.position_ids", "classifier.weight", "classifier.bias"}
    assert sorted(path for entry in receipt.loaded for path in entry.params) == sorted(loaded.params)
    assert "loaded   23 tensors into 23 parameters" in str(receipt) and "ignored  3: " in str(receipt)


def test_the_layout_is_told_by_the_names(tmp_path):
    """One family, two layouts."""
    info = TensorInfo(tmp_path, "F32", (1,))
    indices = resnet.Config.from_published({"architecture": "CIFAR ResNet-20"}).indices()
    examples = {"akamaster": "module.layer1.0.bn1.bias", "hf": "resnet.embedder.embedder.convolution.weight"}
    for name, tensor in examples.items():
        assert source_that_fits(resnet.SOURCES, indices, {tensor: info}) == name


def test_loading_builds_no_random_values(publish, monkeypatch):
    """What the file has is never initialised."""
    monkeypatch.setattr(loading.jax, "jit", None)
    checkpoint = loading.open_checkpoint(str(publish(architectures=["BertModel"])))
    model = loading.abstract(checkpoint)
    assert loading.load(checkpoint, model).params.keys() == chain.split(model)[1].keys()


def test_parameters_start_as_keys_of_flax_have_it():
    """What is fresh has the values that `nnx.Rngs` gives it."""
    checkpoint = loading.from_config({"architecture": "CIFAR ResNet-20"})
    found = loading.build(checkpoint, None, jax.random.key(3))
    expected = checkpoint.family.Backbone(checkpoint.config, rngs=nnx.Rngs(params=jax.random.key(3)))
    found, expected = (chain.split(model)[1] for model in (found, expected))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)
