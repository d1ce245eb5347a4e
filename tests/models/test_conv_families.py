# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutional families where they differ from others: second versions, layouts, real weights, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published import outputs
from safetensors.numpy import load_file

import tl_jax
from tl_jax import loading, pretrained
from tl_jax.core import chain
from tl_jax.core.chain import Mode
from tl_jax.core.errors import UserError
from tl_jax.models import convnext, squeezenet
from tl_jax.tasks import classification

_SQUEEZENET = "squeezenet_v1.0_imagenet_deepcomp"
_CONVNEXT = {"hidden_sizes": [4, 8], "depths": [1, 1]}


@pytest.fixture
def images():
    return {"pixel_values": np.random.default_rng(0).normal(size=(2, 33, 33, 3)).astype(np.float32)}


def test_a_bare_convnext_v2_is_read_by_its_own_names(tmp_path, images):
    """Files of the bare class lack the prefix, and the two versions have different ones."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.ConvNextV2Model(transformers.ConvNextV2Config(num_stages=2, **_CONVNEXT)).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = outputs(model, {"pixel_values": torch.from_numpy(images["pixel_values"])})
    found = tl_jax.load_pretrained(tmp_path)(images)
    # Float32 sums in another order, of order 1.
    np.testing.assert_allclose(found["pooler_output"], expected["pooler_output"], atol=1e-4)


def test_response_norm_starts_as_the_identity_and_has_a_slope_at_zero():
    """A channel that is zero all over the image must not make its gradient NaN."""
    norm = convnext.ResponseNorm(3)
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(norm(x), x)
    norm.scale[...] = jnp.ones(3)
    slope = jax.grad(lambda x: norm(x).sum())(np.zeros_like(x))
    assert np.isfinite(slope).all()


def test_drop_path_drops_whole_examples():
    """The last block leaves an example as it was, or adds twice its branch at rate 1/2."""
    model = loading.abstract(loading.from_config({"model_type": "convnext", "drop_path_rate": 0.5, **_CONVNEXT}))
    stages, params = chain.split(model)
    stage, rng = stages[""][2], np.random.default_rng(0)
    params = {path: rng.normal(0, 0.5, leaf.shape).astype(np.float32) for path, leaf in params.items()}
    carry = chain.Carry(rng.normal(size=(16, 4, 4, 4)).astype(np.float32), {}, {})

    def run(params, mode=chain.EVAL):
        return np.asarray(chain.run_stage(stage, params, carry, mode, jax.random.key(0))[0].x)

    # Without its branch a block is what halves the image.
    halved = run(params | {"blocks/1/layer_scale": np.zeros(8, np.float32)})
    branch, dropped = run(params) - halved, run(params, Mode(dropout=True)) - halved
    kept = np.abs(dropped).max(axis=(1, 2, 3)) > 0
    assert 0 < kept.sum() < 16
    np.testing.assert_allclose(dropped, 2 * branch * kept[:, None, None, None], atol=1e-4)


def test_squeezenet_gives_its_published_scores(shared_data, tmp_path):
    """Real weights: features and the scores of 1000 classes; and the files again, bit for bit."""
    folder = shared_data / "weights" / _SQUEEZENET
    loaded, reference = tl_jax.load_pretrained(folder), np.load(folder / "reference.npz")
    found = loaded({"pixel_values": _squeezenet_input(np.random.default_rng(0))})
    # Float32 sums of up to 4608 terms in another order; features reach 20.
    np.testing.assert_allclose(found["logits"], reference["logits"], atol=1e-4)
    np.testing.assert_allclose(found["pooler_output"], reference["features"], atol=1e-4)
    loaded.save(tmp_path / "saved")
    source, saved = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "saved"))
    assert saved.keys() == source.keys() and all(np.array_equal(saved[name], source[name]) for name in source)


def test_a_new_head_takes_the_place_of_squeezenets_classifier(shared_data, tmp_path):
    """It reads the mean of the features, and what is saved loads again without the old classifier."""
    checkpoint = loading.open_checkpoint(str(shared_data / "weights" / _SQUEEZENET))
    task = classification.Task(classification.Config(), ("ant", "bee"), squeezenet.POOLS)
    checkpoint, add_head = checkpoint.for_pool(task.pool), loading.adder(task)
    model = loading.abstract(checkpoint, add_head)
    loaded = loading.load(checkpoint, model, add_head, fresh=("head/.*",))
    chain.merge_into(model, loaded.params)
    published = checkpoint.published | task.published() | {"tl_jax": {"task": "classification", "options": {}}}
    pretrained.Pretrained(model, checkpoint, loaded, published).save(tmp_path / "saved")
    again = tl_jax.load_pretrained(tmp_path / "saved")
    assert again.classes == ("ant", "bee") and set(again.receipt.ignored) == {"conv_final.weight", "conv_final.bias"}
    assert again.params["head/kernel"].shape == (512, 2)
    np.testing.assert_array_equal(again.params["head/kernel"], loaded.params["head/kernel"])


def _squeezenet_input(rng):
    """Noise as `reference.npz` says: means of 9x9 windows, the zeros around counted."""
    noise = rng.normal(0, 60, (2, 3, 227, 227)).astype(np.float32).transpose(0, 2, 3, 1)
    return nnx.avg_pool(noise, (9, 9), strides=(1, 1), padding=((4, 4), (4, 4)), count_include_pad=True)


@pytest.mark.parametrize(("version", "size"), [("1_0", 64), ("1_1", 65)])
def test_squeezenet_in_torchvision_names(version, size, tmp_path):
    """The network written once more with the modules that torchvision's names stand for."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = _torchvision_squeezenet(torch, version)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(0, 0.1 if tensor.ndim == 1 else (2 / tensor[0].numel()) ** 0.5)
        pixels = torch.randn(2, 3, size, size)
        features, expected = model["features"](pixels), model["classifier"](model["features"](pixels))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": f"squeezenet{version}", "num_classes": 7}))
    found = tl_jax.load_pretrained(tmp_path)({"pixel_values": pixels.permute(0, 2, 3, 1).numpy()})
    np.testing.assert_allclose(found["last_hidden_state"], features.permute(0, 2, 3, 1), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found["logits"], expected.flatten(1), atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.05, "too flat to tell anything"


def _torchvision_squeezenet(torch, version):
    nn = torch.nn

    class Fire(nn.Module):
        def __init__(self, inputs, inner):
            super().__init__()
            self.squeeze = nn.Conv2d(inputs, inner, 1)
            self.expand1x1 = nn.Conv2d(inner, 4 * inner, 1)
            self.expand3x3 = nn.Conv2d(inner, 4 * inner, 3, padding=1)

        def forward(self, x):
            x = self.squeeze(x).relu()
            return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)

    def pool():
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    one = version == "1_0"
    layers, width = [nn.Conv2d(3, 96 if one else 64, 7 if one else 3, 2), nn.ReLU(), pool()], 96 if one else 64
    for i, inner in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        layers.append(Fire(width, inner))
        width = 8 * inner
        if i in ((2, 6) if one else (1, 3)):
            layers.append(pool())
    classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 7, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": classifier}).eval()


def test_mobilenet_gives_the_outputs_of_keras(shared_data):
    """Real weights, names and layouts of Keras; the published network ends in the softmax."""
    folder = shared_data / "weights/mobilenet_v1_025_vww96_mlperftiny"
    loaded, reference = tl_jax.load_pretrained(folder), np.load(folder / "reference.npz")
    logits = loaded({"pixel_values": reference["input_nhwc"]})["logits"]
    np.testing.assert_allclose(jax.nn.softmax(logits), reference["probs"], atol=1e-5)
    assert loaded.classes == ("non_person", "person")
    assert not loaded.receipt.ignored and len(loaded.params) == len(loaded.receipt.loaded)


def test_resnet8_gives_the_outputs_of_keras(shared_data):
    """Real weights: the published probabilities, and 871 of 1000 pictures right, as its facts say."""
    folder = shared_data / "weights/resnet8_cifar10_mlperftiny"
    loaded, reference = tl_jax.load_pretrained(folder), np.load(folder / "reference.npz")
    logits = loaded({"pixel_values": reference["input_nhwc"]})["logits"]
    np.testing.assert_allclose(jax.nn.softmax(logits), reference["probs"], atol=1e-5)
    assert not loaded.receipt.ignored and len(loaded.params) == len(loaded.receipt.loaded)
    pictures = np.load(shared_data / "vision/cifar10/data.npz")
    found = loaded({"pixel_values": pictures["x_test"].astype(np.float32)})["logits"].argmax(axis=1)
    assert (found == pictures["y_test"]).sum() == 871


@pytest.mark.parametrize(
    "published",
    [
        {"model_type": "convnextv2", **_CONVNEXT},
        {"model_type": "convnext", "drop_path_rate": 0.5, **_CONVNEXT},
        {"model_type": "efficientnet", "width_coefficient": 0.1, "depth_coefficient": 0.5, "hidden_dim": 128},
        {"model_type": "mobilenet_v1", "depth_multiplier": 0.1},
        {"model_type": "mobilenet_v2", "depth_multiplier": 0.1},
        {"architecture": "squeezenet1_1"},
    ],
    ids=lambda published: published.get("model_type", "squeezenet"),
)
def test_bfloat16_parameters_compute_in_bfloat16(published, images):
    """In training too: neither statistics nor random factors widen what flows."""
    model = loading.abstract(loading.from_config(published).for_pool("mean"))
    chains, params = chain.split(model)
    mode = Mode(dropout=True, batch_stats=True)

    def forward(params, key):
        return chain.run_chains(model, chains, params, images, lambda _: mode, key, dtype="bfloat16")

    found, moved = jax.eval_shape(forward, params, jax.random.key(0))
    assert {str(value.dtype) for value in found.values()} == {"bfloat16"}
    assert {str(value.dtype) for value in moved.values()} <= {"float32"}


def test_sizes_that_cannot_be_are_refused():
    """One line that says what and where."""
    with pytest.raises(UserError, match="one length"):
        loading.from_config({"model_type": "convnext", "hidden_sizes": [4], "depths": [1, 1]})
    with pytest.raises(UserError, match="num_stages is 3, only 2"):
        loading.from_config({"model_type": "convnext", "num_stages": 3, **_CONVNEXT})
    with pytest.raises(UserError, match="hidden_dim is 64, 1280 channels of this width are 2560"):
        loading.from_config({"model_type": "efficientnet", "hidden_dim": 64})
    with pytest.raises(UserError, match="pooling_type is 'max'"):
        loading.from_config({"model_type": "efficientnet", "pooling_type": "max"})
    with pytest.raises(UserError, match="output_stride is 16, only 32"):
        loading.from_config({"model_type": "mobilenet_v2", "output_stride": 16})
    with pytest.raises(UserError, match="names no version"):
        loading.from_config({"architecture": "squeezenet"})
