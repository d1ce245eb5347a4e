# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The CIFAR form: published weights against their published outputs, and a network from scratch."""

import json

import jax
import numpy as np
import pytest

import tl_jax
from tl_jax import loading, pretrained
from tl_jax.core import chain
from tl_jax.core.chain import Mode
from tl_jax.core.errors import UserError
from tl_jax.models import resnet

SMALL = {"model_type": "resnet", "stem": "cifar", "depths": [1, 1], "hidden_sizes": [4, 8], "num_channels": 1}


@pytest.fixture(scope="module")
def small():
    """A network from scratch, every leaf drawn."""
    checkpoint = loading.from_config(SMALL)
    model = loading.abstract(checkpoint)
    rng = np.random.default_rng(0)
    params = {
        path: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) for path, leaf in chain.split(model)[1].items()
    }
    chain.merge_into(model, params)
    loaded = loading.Loaded(params, loading.Receipt(fresh=tuple(params)), resnet.SOURCES["hf"], None)
    return pretrained.Pretrained(model, checkpoint, loaded, checkpoint.published)


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet56_cifar10"])
def test_published_weights_give_their_published_outputs(shared_data, name):
    """The recorded logits, and the recorded accuracy to the last of 1000 images."""
    folder = shared_data / "weights" / name
    loaded = tl_jax.load_pretrained(folder)
    published, images = (
        json.loads((folder / "config.json").read_text()),
        np.load(shared_data / "vision/cifar10/data.npz"),
    )
    mean, std = np.float32(published["mean"]), np.float32(published["std"])
    pixels = (images["x_test"].astype(np.float32) / 255 - mean) / std
    logits = np.concatenate([loaded({"pixel_values": part})["logits"] for part in np.split(pixels, 4)])

    reference = np.load(folder / "reference.npz")
    np.testing.assert_allclose(pixels[:4], reference["input_nchw"].transpose(0, 2, 3, 1), atol=1e-6)
    # Float32 sums in another order, through 20 or 56 layers; logits reach 20.
    np.testing.assert_allclose(logits[:4], reference["logits"], atol=1e-4)
    right = int((logits.argmax(axis=1) == images["y_test"]).sum())
    assert right == round(published["measured_here"]["top1_pct"]["subset_1000_in_vision_cifar10_test"] * 10)
    assert loaded.classes == tuple(published["classes_order"])
    assert loaded.receipt.ignored == () and len(loaded.params) == len(loaded.receipt.loaded)


def test_a_network_from_scratch_saves_and_loads_again(small, tmp_path):
    """Its form stands in `config.json`, so the files need no more than themselves."""
    small.save(tmp_path / "saved")
    again = tl_jax.load_pretrained(tmp_path / "saved")
    assert again.model.config == small.model.config
    assert again.params.keys() == small.params.keys()
    batch = {"pixel_values": np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)}
    np.testing.assert_array_equal(again(batch)["pooler_output"], small(batch)["pooler_output"])


def test_option_a_pads_half_of_the_new_channels_on_either_side(small):
    """A block whose convolutions give zero is its shortcut: every second pixel, zeros around the channels."""
    stage = chain.split(small.model)[0][""][2]
    params = {path: 0 * leaf if "/scale" in path or "/bias" in path else leaf for path, leaf in small.params.items()}
    x = np.random.default_rng(2).uniform(size=(1, 5, 5, 4)).astype(np.float32)
    carry, _ = chain.run_stage(stage, params, chain.Carry(x, {}, {}), Mode(), None)
    assert stage.name == "blocks/1"
    np.testing.assert_array_equal(carry.x, np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2))))


def test_bfloat16_parameters_compute_in_bfloat16(small):
    """Running statistics stay float32 and do not widen what flows."""
    model, batch = small.model, {"pixel_values": np.ones((1, 8, 8, 1), np.float32)}

    def forward(params):
        stats, chains = Mode(batch_stats=True), chain.split(model)[0]
        return chain.run_chains(model, chains, params, batch, lambda _: stats, dtype="bfloat16")

    outputs, moved = jax.eval_shape(forward, small.params)
    assert {str(value.dtype) for value in outputs.values()} == {"bfloat16"}
    assert {str(value.dtype) for value in moved.values()} == {"float32"}


def test_sizes_that_cannot_be_are_refused():
    """Lists of different length, and option A where channels become fewer."""
    with pytest.raises(UserError, match="one length"):
        loading.from_config(SMALL | {"depths": [1]})
    with pytest.raises(UserError, match="cannot narrow"):
        loading.from_config(SMALL | {"hidden_sizes": [8, 4]})


def test_images_with_other_channels_are_refused(small):
    """One line that says what came and what is taken."""
    with pytest.raises(UserError, match=r"\[1, 8, 8, 3\].*\[B, H, W, 1\]"):
        small({"pixel_values": np.zeros((1, 8, 8, 3), np.float32)})
