# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Networks as `timm` publishes them: its logits, and its own strict loading of what we save."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tl_jax
from tl_jax import loading
from tl_jax.core.errors import UserError

_CONVNEXT = {"num_classes": 3, "depths": [1, 2, 1, 1], "dims": [8, 12, 16, 20]}
_RESNET = {"num_classes": 3, "channels": [8, 12, 16, 20]}
_VIT = {"num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 12, "patch_size": 4}
NETWORKS = {
    "convnext": {
        "architecture": "convnext_tiny",
        "model_args": _CONVNEXT | {"norm_eps": 1e-3, "in_chans": 2},
        "image_size": 65,
    },
    "convnextv2": {"architecture": "convnextv2_tiny", "model_args": _CONVNEXT, "image_size": 65},
    "convnext_conv_mlp": {"architecture": "convnext_atto", "model_args": _CONVNEXT, "image_size": 65},
    "convnextv2_conv_mlp": {"architecture": "convnextv2_nano", "model_args": _CONVNEXT, "image_size": 65},
    "deit": {"architecture": "deit_tiny_patch16_224", "model_args": _VIT, "image_size": 12},
    "deit_distilled": {"architecture": "deit_tiny_distilled_patch16_224", "model_args": _VIT, "image_size": 12},
    "efficientnet": {"architecture": "efficientnet_b0", "model_args": {"num_classes": 3, "in_chans": 1}, "gain": 1.4},
    "efficientnet_tf": {
        "architecture": "tf_efficientnet_b0",
        "model_args": {"num_classes": 3},
        "image_size": 40,
        "gain": 1.4,
    },
    "resnet_basic": {
        "architecture": "resnet18",
        "model_args": _RESNET | {"layers": [1, 2, 1, 1], "in_chans": 1},
    },
    "resnet_bottleneck": {"architecture": "resnet50", "model_args": _RESNET | {"layers": [1, 2, 1, 1]}},
    "vit": {"architecture": "vit_tiny_patch16_224", "model_args": _VIT, "image_size": 12},
    "vit_grey": {
        "architecture": "vit_base_patch32_384",
        "model_args": _VIT | {"in_chans": 1, "qkv_bias": False, "mlp_ratio": 2.0},
        "image_size": 12,
    },
    "vit_mean": {
        "architecture": "vit_tiny_patch16_224",
        "model_args": _VIT | {"global_pool": "avg", "fc_norm": False},
        "image_size": 12,
    },
    "vit_norm_behind_mean": {
        "architecture": "vit_tiny_patch16_224",
        "model_args": _VIT | {"global_pool": "avg"},
        "image_size": 12,
    },
}


def reference(*arguments) -> None:
    """Run the program that may import `timm`."""
    program = pathlib.Path(__file__).with_name("timm_reference.py")
    done = subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One published folder for each network."""
    folder = tmp_path_factory.mktemp("timm")
    reference("make", folder, json.dumps(NETWORKS))
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_timm(folder, name):
    """Every tensor finds its parameter, and features and logits follow."""
    loaded, expected = tl_jax.load_pretrained(folder / name), np.load(folder / name / "reference.npz")
    assert not loaded.receipt.fresh and not loaded.receipt.dropped
    found = loaded({"pixel_values": expected["pixel_values"]})
    # Float32 sums of a few hundred terms in another order, through a few layers of order 1.
    np.testing.assert_allclose(found["last_hidden_state"], expected["features"], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4, rtol=1e-4)
    assert np.abs(np.diff(expected["features"], axis=0)).max() > 0.1, "too flat to tell anything"


def test_timm_loads_what_we_save(folder, tmp_path):
    """Strictly, with its own code, to the same bits."""
    for name in NETWORKS:
        tl_jax.load_pretrained(folder / name).save(tmp_path / name)
    reference("check", folder, tmp_path)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"architecture": "convnext_atto_ols"}, "'convnext_atto_ols' is not built; did you mean 'convnext_atto'"),
        ({"architecture": "convnext_tiny", "model_args": {"head_norm_first": True}}, "head_norm_first is True"),
        ({"architecture": "efficientnetv2_s"}, "'efficientnetv2_s' is not built"),
        ({"architecture": "efficientnet_b0", "model_args": {"pad_type": "valid"}}, "pad_type is 'valid'"),
        ({"architecture": "resnet50d"}, "'resnet50d' is not built; did you mean 'resnet50'"),
        ({"architecture": "resnet50", "model_args": {"output_stride": 8}}, "output_stride is 8, only 32"),
    ],
)
def test_what_the_tensors_would_not_show_is_refused(published, message):
    """A variant of another name, and arguments that change the network alone."""
    with pytest.raises(UserError, match=message):
        loading.from_config(published)
