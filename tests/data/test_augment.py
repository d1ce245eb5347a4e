# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""RandAugment and TrivialAugment: every operation against NumPy or timm, strengths, and what is drawn."""

import numpy as np
import pytest
import references
from PIL import Image

from tl_jax import config
from tl_jax.config import Data, Experiment, Model, Train
from tl_jax.core.errors import UserError
from tl_jax.data import augment
from tl_jax.data.images import ImageSpec, ImageTransform

RNG = np.random.default_rng(0)
# Not all of 0 to 255, so that stretching contrast does something.
RGB = RNG.integers(20, 200, (24, 30, 3), np.uint8)
GREY = RNG.integers(20, 200, (8, 8, 1), np.uint8)


def luma(image):
    """ITU-R 601, in 16 bits as Pillow has it."""
    return (image.astype(int) @ np.array([19595, 38470, 7471]) + 0x8000 >> 16)[:, :, None]


def blended(image, other, factor):
    """Pillow's blend: from `other` to the image and beyond, cut off to 8 bits."""
    return np.clip(other + factor * (image.astype(np.float32) - other), 0, 255).astype(np.uint8)


def shifted(image, right, down):
    """Black where nothing was."""
    found = np.zeros_like(image)
    height, width = image.shape[:2]
    found[max(down, 0) : height + down, max(right, 0) : width + right] = image[
        max(-down, 0) : height - down, max(-right, 0) : width - right
    ]
    return found


def stretched(image):
    """Every channel from its darkest to its brightest over the whole range."""
    low, high = image.min(axis=(0, 1)).astype(float), image.max(axis=(0, 1)).astype(float)
    scale = 255 / (high - low)
    return np.clip(np.trunc(image * scale - low * scale), 0, 255).astype(np.uint8)


def timm(name, image, *arguments, **options):
    """One function of `timm`, which hands it to Pillow in its own way."""
    function = getattr(references.timm_module("data/auto_augment.py"), name)
    return np.asarray(function(Image.fromarray(image), *arguments, **options))


NEAREST = {"resample": Image.Resampling.NEAREST}
EXPECTED = {
    "identity": (0.0, lambda x: x),
    "shear_x": (0.3, lambda x: timm("shear_x", x, 0.3, **NEAREST)),
    "shear_y": (-0.2, lambda x: timm("shear_y", x, -0.2, **NEAREST)),
    "translate_x": (4.7, lambda x: shifted(x, 4, 0)),
    "translate_y": (-3.2, lambda x: shifted(x, 0, -3)),
    "rotate": (25.0, lambda x: timm("rotate", x, 25.0, **NEAREST)),
    "brightness": (0.5, lambda x: blended(x, 0, np.float32(1.5))),
    "color": (-0.4, lambda x: blended(x, luma(x), np.float32(0.6))),
    "contrast": (0.3, lambda x: blended(x, int(luma(x).mean() + 0.5), np.float32(1.3))),
    "sharpness": (0.9, lambda x: timm("sharpness", x, 1.9)),
    "posterize": (3.0, lambda x: x & 0b11100000),
    "solarize": (99.5, lambda x: np.where(x < 99.5, x, 255 - x)),
    "autocontrast": (0.0, stretched),
    "equalize": (0.0, lambda x: timm("equalize", x)),
}


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_an_operation_gives_the_pixels_of_a_second_computation(name):
    """Bit for bit, but for what Pillow rounds in float32."""
    strength, expected = EXPECTED[name]
    found, wanted = augment.apply(RGB, name, strength), expected(RGB)
    assert found.dtype == np.uint8 and found.shape == RGB.shape
    assert name == "identity" or (found != RGB).any()
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= (name in ("color", "contrast", "autocontrast"))


def test_strengths_are_those_of_torchvision():
    """`RandAugment(magnitude=9)` and the last of 31 steps of `TrivialAugmentWide`, as its tables give them."""
    image = np.zeros((331, 662, 3), np.uint8)
    seen = {}

    def note(picture, name, strength):
        seen.setdefault(name, set()).add(round(strength, 9))
        return picture

    def strengths(change):
        seen.clear()
        for seed in range(400):
            change(image, np.random.default_rng(seed))
        return {name: sorted(values) for name, values in seen.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "apply", note)
        found = strengths(augment.rand)
        factors = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), [-0.27, 0.27])
        assert found == {
            **{"shear_x": [-0.09, 0.09], "shear_y": [-0.09, 0.09], "rotate": [-9, 9]},
            **{"translate_x": [-90, 90], "translate_y": [-45, 45], "posterize": [7], "solarize": [178.5]},
            **dict.fromkeys(("identity", "autocontrast", "equalize"), [0]),
            **factors,
        }
        found = strengths(augment.trivial)
    assert set(found) == set(augment.OPERATIONS), "an operation was never drawn"
    assert max(map(abs, found["rotate"])) <= 135 and len({abs(value) for value in found["rotate"]}) > 10
    assert max(map(abs, found["shear_x"])) <= 0.99 and max(map(abs, found["translate_y"])) <= 32
    assert set(found["posterize"]) <= {2, 3, 4, 5, 6, 7, 8} and min(found["solarize"]) < 60


@pytest.mark.parametrize("name", ["rand", "trivial"])
@pytest.mark.parametrize("image", [RGB, GREY], ids=["colour", "grey 8x8"])
def test_a_change_is_a_function_of_what_it_draws(name, image):
    """The same generator, the same pixels; another, others; no size or channel is lost."""
    (change,) = augment.augmentations((name,), 15)
    drawn = [change(image, np.random.default_rng(seed)) for seed in range(60)]
    for seed, first in enumerate(drawn):
        assert first.shape == image.shape and first.dtype == np.uint8
        np.testing.assert_array_equal(first, change(image, np.random.default_rng(seed)))
    assert len({picture.tobytes() for picture in drawn}) > 10


def test_changes_come_in_the_order_of_their_names():
    """Through the transform that the engine makes; without a generator nothing changes."""
    spec = ImageSpec(24, 30, (0.0,) * 3, (1.0,) * 3, scale=1.0, resize_to=(24, 30))
    made = ImageTransform(spec, ("rand", "flip"), 20)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        (flip,) = augment.augmentations(("flip",))
        expected = flip(augment.rand(RGB, rng, 20), rng)
        np.testing.assert_array_equal(made({"image": RGB}, np.random.default_rng(seed))["pixel_values"], expected)
    np.testing.assert_array_equal(made({"image": RGB})["pixel_values"], RGB)


@pytest.mark.parametrize("image", [RGB, GREY], ids=["colour", "grey 8x8"])
def test_flip_and_crop_take_the_pixels_of_a_padded_image(image):
    """As NumPy mirrors, pads and cuts, from the same draws in the same order; their two halves give the same."""
    height, width = image.shape[:2]
    up, left = height // 8, width // 8
    flip, crop = augment.augmentations(("flip", "crop"))
    for seed in range(60):
        rng = np.random.default_rng(seed)
        expected = image[:, ::-1] if rng.random() < 0.5 else image
        padded = np.pad(expected, ((up, up), (left, left), (0, 0)), mode="reflect")
        top, first = rng.integers(2 * up + 1), rng.integers(2 * left + 1)
        expected = padded[top : top + height, first : first + width]
        rng = np.random.default_rng(seed)
        np.testing.assert_array_equal(crop(flip(image, rng), rng), expected)
        rng = np.random.default_rng(seed)
        drawn = flip.draw(image.shape, rng), crop.draw(image.shape, rng)
        assert [len(one) for one in drawn] == [flip.numbers, crop.numbers]
        np.testing.assert_array_equal(crop.apply(flip.apply(image, drawn[0]), drawn[1]), expected)


def stripes(hidden):
    """Lengths of the stretches of True."""
    edges = np.diff(np.pad(hidden.astype(int), 1))
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)


def test_specaugment_hides_stripes_of_the_sound():
    """Whole bands and whole frames take the mean of the sound, in at most two stripes of either that are as long as the
    policy allows; all else, and what lies behind the sound, stays."""
    features = RNG.normal(size=(700, 80)).astype(np.float32)
    for seed in range(50):
        found = augment.specaugment(features, 600, np.random.default_rng(seed))
        np.testing.assert_array_equal(found[600:], features[600:])
        hidden = found[:600] != features[:600]
        frames, bands = hidden.all(axis=1), hidden.all(axis=0)
        np.testing.assert_array_equal(hidden, frames[:, None] | bands)
        np.testing.assert_allclose(found[:600][hidden], features[:600].mean(), rtol=1e-6)
        # Two that touch are one.
        for lengths, most in ((stripes(frames), 100), (stripes(bands), 27)):
            assert len(lengths) <= 2 and lengths.sum() <= 2 * most and (len(lengths) < 2 or lengths.max() <= most)


def test_specaugment_draws_the_sizes_of_the_policy():
    """Bands and frames that are hidden, on average: as many as an independent simulation of the paper's formulas hides,
    to within five standard errors of 2000 draws."""
    features, rng = RNG.normal(size=(300, 80)).astype(np.float32), np.random.default_rng(1)
    counts, expected = [], []
    for seed in range(2000):
        hidden = augment.specaugment(features, 300, np.random.default_rng(seed)) != features
        counts.append((hidden.all(axis=0).sum(), hidden.all(axis=1).sum()))
        sets = [set(), set()]
        for _ in range(2):
            for chosen, total, most in ((sets[0], 80, 27), (sets[1], 300, 60)):
                size = int(rng.uniform(0, most + 1))
                first = int(rng.uniform(0, total - size + 1))
                chosen.update(range(first, first + size))
        expected.append([len(chosen) for chosen in sets])
    error = 5 * np.std(expected, axis=0) * np.sqrt(2 / 2000)
    assert (np.abs(np.mean(counts, axis=0) - np.mean(expected, axis=0)) < error).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(augment=("rand",), magnitude=31), "data.magnitude is 31, must be from 0 to 30"),
        (Data(augment=("trivial",), magnitude=5), "data.magnitude goes with rand"),
    ],
)
def test_a_strength_that_means_nothing_is_refused(data, message):
    """Beyond the last step, or where nothing reads it."""
    exp = Experiment(model=Model(family="vit"), data=data, train=Train(steps=1))
    with pytest.raises(UserError, match=message):
        config.validate(exp)
