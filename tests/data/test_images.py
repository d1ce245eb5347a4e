# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as arrays: equal to the published processors, deterministic in the generator."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tl_jax.core.errors import UserError
from tl_jax.data.images import ImageSpec, ImageTransform, image_spec

RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 256, (40, 61, 3), np.uint8)
TALL = RNG.integers(0, 256, (75, 33, 3), np.uint8)
MEAN_STD = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.25, 0.3]}


def save(folder, name="preprocessor_config.json", **content):
    (folder / name).write_text(json.dumps(content))
    return folder


PROCESSORS = {
    "vit": ("vit", "ViTImageProcessor", {"size": {"height": 24, "width": 24}, "resample": 2}),
    "vit_number": ("vit", "ViTImageProcessor", {"size": 24, "resample": 3}),
    "vit_raw": ("vit", "ViTImageProcessor", {"size": 24, "do_normalize": False, "do_rescale": False, "resample": 0}),
    "convnext": ("convnext", "ConvNextImageProcessor", {"size": {"shortest_edge": 24}, "crop_pct": 0.8, "resample": 3}),
    "convnext_384": ("convnext", "ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "crop_pct": 0.8}),
    "resnet": ("convnext", "ConvNextImageProcessor", {"size": 24, "crop_pct": 0.875, "resample": 3}),
    "clip": ("clip", "CLIPImageProcessor", {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": 24}),
    "dinov2": (
        "bit",
        "BitImageProcessor",
        {
            "size": {"shortest_edge": 28},
            "do_center_crop": True,
            "crop_size": {"height": 24, "width": 24},
            "resample": 3,
        },
    ),
    "deit": ("deit", "DeiTImageProcessor", {"size": 28, "do_center_crop": True, "crop_size": 23, "resample": 3}),
    "padded": ("bit", "BitImageProcessor", {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 24}),
}


@pytest.mark.parametrize("image", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_transformers(name, image, tmp_path):
    """The published file, read by us and by the processor of transformers (its Pillow backend)."""
    import importlib

    module, kind, content = PROCESSORS[name]
    content = {"image_processor_type": kind, **MEAN_STD, **content}
    module = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    theirs = getattr(module, kind + "Pil")(**content)(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    ours = ImageTransform(image_spec(save(tmp_path, **content), None, 224, 3))({"image": image})["pixel_values"]
    assert ours.dtype == np.float32
    # The same Pillow call on the same bytes; float32 rounding of the scale remains (values up to 255 unscaled).
    np.testing.assert_allclose(ours, np.moveaxis(theirs, 0, -1), atol=2e-6 * max(1, np.abs(theirs).max()))


def test_timm_config(tmp_path):
    """`pretrained_cfg`: shorter side to size / crop_pct, centre, normalise; written out here with Pillow alone."""
    cfg = {"input_size": [3, 24, 24], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}
    spec = image_spec(save(tmp_path, "config.json", architecture="resnet18", pretrained_cfg=cfg), None, 224, 3)
    # 24 / 0.9 = 26 for the shorter side of 40, so 61 becomes 39; (39 - 24) // 2 = 7.
    resized = np.asarray(Image.fromarray(WIDE).resize((39, 26), Image.Resampling.BICUBIC))
    expected = (resized[1:25, 7:31] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(ImageTransform(spec)({"image": WIDE})["pixel_values"], expected, atol=1e-6)


def test_plain_config_of_a_published_network(shared_data):
    """The reference inputs of ResNet-20 are its first four CIFAR-10 test pictures."""
    folder = shared_data / "weights" / "resnet20_cifar10"
    spec = image_spec(folder, None, 224, 3)
    assert (spec.height, spec.width, spec.scale) == (32, 32, 1 / 255)
    with (
        np.load(shared_data / "vision" / "cifar10" / "data.npz") as data,
        np.load(folder / "reference.npz") as reference,
    ):
        expected = next(reference[name] for name in reference.files if reference[name].shape == (4, 3, 32, 32))
        for image, pixels in zip(data["x_test"], expected):
            # float32 division in two orders
            np.testing.assert_allclose(
                ImageTransform(spec)({"image": image})["pixel_values"], np.moveaxis(pixels, 0, -1), atol=1e-6
            )


def test_without_files_imagenet_statistics(tmp_path):
    """The ImageNet mean and deviation at the default size; averaged for grey."""
    for folder in (None, tmp_path):
        spec = image_spec(folder, None, (20, 30), 3)
        assert (spec.height, spec.width, spec.mean) == (20, 30, (0.485, 0.456, 0.406))
    grey = image_spec(None, 16, 224, 1)
    assert (grey.height, grey.width, grey.resize_to) == (16, 16, (16, 16))
    np.testing.assert_allclose((grey.mean[0], grey.std[0]), (0.449, 0.226), atol=1e-3)  # the usual rounded values
    assert ImageTransform(grey)({"image": WIDE})["pixel_values"].shape == (16, 16, 1)


@pytest.mark.parametrize("name", ["vit", "resnet", "clip", "deit"])
def test_image_size_of_the_user(name, tmp_path):
    """Another size keeps the published share of the picture: twice as large is twice the resize."""
    content = {"image_processor_type": PROCESSORS[name][1], **MEAN_STD, **PROCESSORS[name][2]}
    folder = save(tmp_path, **content)
    own, twice = image_spec(folder, None, 224, 3), image_spec(folder, None, 224, 3)
    twice = image_spec(folder, 2 * own.height, 224, 3)
    assert twice.height == twice.width == 2 * own.height
    assert max(abs(t - 2 * o) for t, o in zip(twice.resize_to, own.resize_to)) <= 1  # whole pixels


@pytest.mark.parametrize(
    "content, told",
    [
        ({"do_flip_channel_order": True, **MEAN_STD}, "asks for do_flip_channel_order, which is not done here"),
        ({"image_processor_type": "LevitImageProcessor", **MEAN_STD}, "asks for LevitImageProcessor"),
        ({"image_processor_type": None, **MEAN_STD}, "asks for no image_processor_type"),
        ({"size": {"longest_edge": 3}, **MEAN_STD}, "size .* is not known"),
        ({"resample": 9, **MEAN_STD}, "resample is 9"),
        ({"image_mean": [0.1, 0.2], "image_std": [1, 1]}, "2 channels, the network takes 3"),
    ],
)
def test_what_is_not_done_is_refused(content, told, tmp_path):
    """A step left out would only show as lost accuracy."""
    with pytest.raises(UserError, match=told):
        image_spec(save(tmp_path, **{"image_processor_type": "ViTImageProcessor", **content}), None, 224, 3)


def test_broken_file_is_named(tmp_path):
    """Cut JSON."""
    (tmp_path / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(UserError, match="preprocessor_config.json: is not JSON"):
        image_spec(tmp_path, None, 224, 3)


SPEC = ImageSpec(16, 24, (0.0,) * 3, (1.0,) * 3, scale=1.0, resize_to=(16, 24))


def test_augmentation_is_deterministic_in_the_generator():
    """The same generator, the same pixels; others differ; None changes nothing."""
    transform = ImageTransform(SPEC, ("flip", "crop"))
    draw = [transform({"image": WIDE}, np.random.default_rng(s))["pixel_values"] for s in (1, 1, 2, 3)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2]) or not np.array_equal(draw[0], draw[3])
    np.testing.assert_array_equal(
        transform({"image": WIDE})["pixel_values"], ImageTransform(SPEC)({"image": WIDE})["pixel_values"]
    )


def test_flip_mirrors_half_of_the_time():
    """Left and right, never up and down."""
    plain = ImageTransform(SPEC)({"image": WIDE})["pixel_values"]
    flips = 0
    for seed in range(200):
        got = ImageTransform(SPEC, ("flip",))({"image": WIDE}, np.random.default_rng(seed))["pixel_values"]
        flips += np.array_equal(got, plain[:, ::-1])
        assert np.array_equal(got, plain) or np.array_equal(got, plain[:, ::-1])
    assert 70 <= flips <= 130  # four standard deviations of 200 fair draws


def test_crop_shifts_by_at_most_an_eighth():
    """The middle of the picture moves by at most 2 of 16 and 3 of 24 pixels; all shifts occur; edges are mirrored."""
    plain = ImageTransform(SPEC)({"image": WIDE})["pixel_values"]
    padded = np.pad(plain, ((2, 2), (3, 3), (0, 0)), mode="reflect")
    windows = {(t, l): padded[t : t + 16, l : l + 24] for t in range(5) for l in range(7)}
    seen = set()
    for seed in range(400):
        got = ImageTransform(SPEC, ("crop",))({"image": WIDE}, np.random.default_rng(seed))["pixel_values"]
        seen |= {at for at, window in windows.items() if np.array_equal(got, window)}
    assert seen == set(windows)


def test_collate_stacks():
    """float32[B, H, W, C]; images have no lengths."""
    transform = ImageTransform(SPEC)
    batch = transform.collate([transform({"image": WIDE}), transform({"image": TALL[:, :, :1]})])
    assert batch["pixel_values"].shape == (2, 16, 24, 3) and transform.lengths(None) is None


KEPT = {
    "imagenet": ImageSpec(16, 24, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize_to=(16, 24)),
    "bgr": ImageSpec(16, 24, (104.0, 117.0, 123.0), (1.0,) * 3, scale=1.0, resize_to=(20, 24), bgr=True),
    "grey": ImageSpec(16, 24, (0.4488,), (0.2264,), resize="shortest", resize_to=(24, 0), channels=1),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_program_finishes_what_is_kept(name):
    """Bit for bit what the host makes of the same draws, and of an image as it is; kept are its bytes."""
    transform = ImageTransform(KEPT[name], ("flip", "crop", "flip"))
    for augment in (True, False):
        halves = transform.kept(augment)
        whole, kept, drawn = [], [], []
        for seed, image in enumerate([WIDE, TALL, WIDE[:, :, :1]] * 10):
            whole.append(transform({"image": image}, np.random.default_rng(seed) if augment else None))
            kept.append(halves({"image": image}))
            drawn.append(halves.draw(np.random.default_rng(seed)))
        kept, drawn = halves.collate(kept), np.array(drawn, np.int32)
        assert kept["pixel_values"].dtype == np.uint8 and drawn.shape == (30, halves.numbers)
        found = jax.jit(halves.finish)(kept, drawn)
        assert found["pixel_values"].dtype == jnp.float32
        np.testing.assert_array_equal(found["pixel_values"], transform.collate(whole)["pixel_values"])


def test_only_bytes_are_kept():
    """Numbers of another kind would be looked up where there is nothing."""
    with pytest.raises(UserError, match="images of int16, uint8 was expected"):
        ImageTransform(SPEC).kept(False)({"image": np.zeros((16, 24, 3), np.int16)})
