# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images of every family here as its processor of transformers makes them, and as two published networks say in words.

The processors' Pillow forms are compared with: torchvision's resize tensors by another kernel.
"""

import importlib
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import tl_jax
from tl_jax.core.errors import UserError
from tl_jax.data.images import ImageTransform, image_spec

# Family -> (module, name) of the processor that transformers gives it.
FAMILIES = {
    "vit": ("vit", "ViT"),
    "swin": ("vit", "ViT"),
    "deit": ("deit", "DeiT"),
    "dinov2": ("bit", "Bit"),
    "convnext": ("convnext", "ConvNext"),
    "resnet": ("convnext", "ConvNext"),
    "efficientnet": ("efficientnet", "EfficientNet"),
    "mobilenet_v1": ("mobilenet_v1", "MobileNetV1"),
    "mobilenet_v2": ("mobilenet_v2", "MobileNetV2"),
    "clip": ("clip", "CLIP"),
    "siglip": ("siglip", "Siglip"),
}
RNG = np.random.default_rng(0)
SHAPES = {"wide": (301, 403, 3), "tall": (517, 233, 3), "tiny": (7, 5, 3), "exact": (224, 224, 3), "grey": (61, 90, 1)}
IMAGES = {name: RNG.integers(0, 256, shape, np.uint8) for name, shape in SHAPES.items()}


def processor_of(family, **fields):
    module, name = FAMILIES[family]
    module = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(module, f"{name}ImageProcessorPil")(**fields)


def compare(processor, spec, names=tuple(IMAGES)):
    for name in names:
        # Grey images are three equal colours to the processors.
        picture = Image.fromarray(np.broadcast_to(IMAGES[name], (*IMAGES[name].shape[:2], 3)))
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        ours = ImageTransform(spec)({"image": IMAGES[name]})["pixel_values"]
        # The same Pillow call on the same bytes; then float32 operations, of which ours folds two into one.
        np.testing.assert_allclose(ours, np.moveaxis(theirs, 0, -1), atol=2e-6 * np.abs(theirs).max(), err_msg=name)


def write(folder, name="preprocessor_config", **fields):
    (folder / f"{name}.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_processor_gives_the_same_pixels(family, tmp_path):
    """Each family's own processor with its defaults, from the file that it saves: all shapes of images."""
    processor = processor_of(family)
    processor.save_pretrained(tmp_path)
    compare(processor, image_spec(tmp_path, None, 224, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_file_means_the_defaults(family, tmp_path):
    """A file that names the processor alone, or neither it nor anything else that the model type does not tell."""
    (tmp_path / "full").mkdir()
    processor_of(family).save_pretrained(tmp_path / "full")
    expected = image_spec(tmp_path / "full", None, 224, 3)
    name = f"{FAMILIES[family][1]}ImageProcessor"
    for fields in ({"image_processor_type": name}, {"image_processor_type": f"{name}Fast"}, {"do_resize": True}):
        write(tmp_path, "config", model_type=family)
        assert image_spec(write(tmp_path, **fields), None, 224, 3) == expected


NUMBERS = {
    "vit": {"size": 50},
    "deit": {"size": 50, "crop_size": 41},
    "dinov2": {"size": 50, "crop_size": 41},
    "convnext": {"size": 50},
    "efficientnet": {"size": 50, "do_center_crop": True, "crop_size": 41},
    "mobilenet_v1": {"size": 50, "crop_size": 41},
    "mobilenet_v2": {"size": 50, "crop_size": 71},
    "clip": {"size": 50, "crop_size": 41, "do_rescale": False, "do_normalize": False},
}


@pytest.mark.parametrize("family", NUMBERS)
def test_bare_numbers_mean_what_they_mean_to_the_processor(family, tmp_path):
    """Older files give one number, a square for some processors and the shorter side for others."""
    write(tmp_path, feature_extractor_type=f"{FAMILIES[family][1]}FeatureExtractor", **NUMBERS[family])
    compare(processor_of(family, **NUMBERS[family]), image_spec(tmp_path, None, 224, 3), ("wide", "tall"))


@pytest.mark.parametrize(
    "fields",
    [
        {"rescale_offset": True, "rescale_factor": 1 / 127.5},
        {"rescale_offset": True, "do_rescale": False, "include_top": False},
        {"do_normalize": False, "image_std": [0.2, 0.3, 0.4]},
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "include_top": False},
    ],
)
def test_efficientnets_own_steps(fields, tmp_path):
    """1 less after scaling, and the deviation once more at the end, each on and off."""
    processor = processor_of("efficientnet", size={"height": 40, "width": 30}, **fields)
    processor.save_pretrained(tmp_path)
    compare(processor, image_spec(tmp_path, None, 224, 3), ("wide",))


def test_the_file_of_a_whole_processor(tmp_path):
    """CLIP's image processor as a part of processor_config.json, beside the tokenizer, as transformers 5 saves it."""
    from transformers import CLIPProcessor, CLIPTokenizer

    processor = processor_of("clip", size={"shortest_edge": 60}, crop_size={"height": 50, "width": 50})
    CLIPProcessor(image_processor=processor, tokenizer=CLIPTokenizer()).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    compare(processor, image_spec(tmp_path, None, 224, 3), ("wide",))


@pytest.mark.parametrize(
    ("kind", "fields", "told"),
    [
        ("CLIP", {"do_center_crop": False}, "leaves images of many sizes .*shortest_edge.*no crop"),
        ("ViT", {"do_resize": False}, r"many sizes \(do_resize False"),
        ("Siglip", {"size": 64}, 'many sizes .*Write "do_resize": true, "size": {"height": 64, "width": 64}'),
        ("ConvNext", {"do_center_crop": True}, "asks for do_center_crop, which is not done"),
        ("ConvNext", {"size": {"height": 64, "width": 64}}, "size .* is not known"),
        ("Beit", {}, "asks for BeitImageProcessor, which is not done here; did you mean"),
    ],
)
def test_what_no_batch_can_hold_is_refused(kind, fields, told, tmp_path):
    """Nothing is cropped, squeezed or guessed that the file does not ask for."""
    with pytest.raises(UserError, match=told):
        image_spec(write(tmp_path, image_processor_type=f"{kind}ImageProcessor", **fields), None, 224, 3)


def transformed(folder, pictures):
    transform = ImageTransform(image_spec(folder, None, 224, 3))
    return np.stack([transform({"image": picture})["pixel_values"] for picture in pictures])


def test_squeezenet_is_fed_as_its_config_says(shared_data):
    """BGR, 0 to 255, less a mean: the formula in NumPy, and with real weights the reference scores."""
    folder = shared_data / "weights/squeezenet_v1.0_imagenet_deepcomp"
    noise = np.random.default_rng(0).normal(0, 60, (2, 3, 227, 227)).astype(np.float32).transpose(0, 2, 3, 1)
    inputs = nnx.avg_pool(noise, (9, 9), strides=(1, 1), padding=((4, 4), (4, 4)), count_include_pad=True)
    mean_bgr = np.array([104, 117, 123])
    pictures = np.round(np.asarray(inputs) + mean_bgr).astype(np.uint8)[..., ::-1]
    found = transformed(folder, pictures)
    np.testing.assert_array_equal(found, pictures[..., ::-1].astype(np.float32) - mean_bgr)
    scores = tl_jax.load_pretrained(folder)({"pixel_values": found})["logits"]
    # Pictures hold whole numbers, inputs did not (0.03); scores differ by 1.5 with the colours the other way round.
    np.testing.assert_allclose(scores, np.load(folder / "reference.npz")["logits"], atol=0.1)


def test_mobilenet_is_fed_as_its_config_says(shared_data):
    """RGB, divided by 255: the formula in NumPy, and with real weights the reference probabilities."""
    folder = shared_data / "weights/mobilenet_v1_025_vww96_mlperftiny"
    reference = np.load(folder / "reference.npz")
    pictures = np.round(reference["input_nhwc"] * 255).astype(np.uint8)
    found = transformed(folder, pictures)
    np.testing.assert_allclose(found, pictures / 255, rtol=1e-6)  # one float32 product
    probabilities = jax.nn.softmax(tl_jax.load_pretrained(folder)({"pixel_values": found})["logits"])
    # Pictures hold whole numbers, inputs did not (0.0006); 0.016 with the colours the other way round.
    np.testing.assert_allclose(probabilities, reference["probs"], atol=2e-3)


def test_words_are_understood_whole_or_not_at_all(tmp_path):
    """The mean belongs to the colours it names; a size of one's own; a word too many is refused."""
    text = "BGR, 20x20, pixel 0..255 minus mean [1.5, 2, 3] (R,G,B)"
    spec = image_spec(write(tmp_path, "config", input=text), 30, 224, 3)
    assert (spec.mean, spec.bgr, spec.height, spec.resize_to) == ((3.0, 2.0, 1.5), True, 30, (30, 30))
    grey = image_spec(tmp_path, None, 224, 1)
    assert not grey.bgr and grey.mean == pytest.approx((6.5 / 3,))
    raw = "RGB 32x32, float32, raw pixel values 0..255, no scaling"
    spec = image_spec(write(tmp_path, "config", input=raw), None, 224, 3)
    assert (spec.mean, spec.std, spec.scale, spec.height) == ((0.0,) * 3, (1.0,) * 3, 1.0, 32)
    for text in ("RGB 20x20, pixel/255, whitened", "RGB 20x30, pixel/255", "any picture"):
        with pytest.raises(UserError, match="config.json: says of its input '.*', which is not understood"):
            image_spec(write(tmp_path, "config", input=text), None, 224, 3)
