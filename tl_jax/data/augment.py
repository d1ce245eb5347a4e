# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Random changes of training images, and of the spectrograms of training sounds.

    changes = augmentations(("flip", "rand"), magnitude=9)
    for change in changes:
        image_HWC = change(image_HWC, rng)       # uint8[H, W, 1 or 3] -> the same
    features_TM = specaugment(features_TM, frames, rng)

A change depends on the example and on what it draws from `rng` alone. `rand` and `trivial` have the operations and
ranges of torchvision's `RandAugment` and `TrivialAugmentWide`, nearest pixels and black borders; Pillow computes them.
`flip` and `crop` only choose pixels: they are a `Pick`, drawn on the host and applied there or within a program.
"""

# H height, W width, C channels, T frames, M mel bands

import abc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# Strengths come in this many steps, the first of which changes nothing.
STEPS = 31


def augmentations(names: Sequence[str], magnitude: int = 9) -> tuple[Change, ...]:
    """The changes of these names.

    Args:
      names: of `flip` (left-right, probability 1/2), `crop` (pad by 1/8 of each side with the reflection, cut out at
        random), `rand`, `trivial`.
      magnitude: strength of `rand`, from 0 to 30.
    """
    known = {
        "flip": _Flip(),
        "crop": _Crop(),
        "rand": lambda image, rng: rand(image, rng, magnitude),
        "trivial": trivial,
    }
    return tuple(known[name] for name in names)


def rand(image_HWC: np.ndarray, rng: np.random.Generator, magnitude: int = 9) -> np.ndarray:
    """RandAugment (Cubuk et al. 2020): two of the 14 operations, drawn with replacement, at one strength.

    At magnitude m of 30 a shear is m/30 of 0.3, a shift of 150/331 of the side, a rotation of 30 degrees; brightness,
    colour, contrast and sharpness change by a factor of 1 ± m/30 of 0.9; `posterize` takes up to 4 of 8 bits and
    `solarize` inverts what is brighter than 255 · (1 - m/30). Signs are drawn.
    """
    for _ in range(2):
        strengths = _strengths(image_HWC, 0.3, 150 / 331, None, 30, 0.9, 4)
        image_HWC = _one(image_HWC, strengths, magnitude, rng)
    return image_HWC


def trivial(image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """TrivialAugment (Müller and Hutter 2021) in its wide form: one of the 14 operations at a strength drawn from 0 to
    30, in ranges of 0.99 for shears, 32 pixels, 135 degrees, factors of 1 ± 0.99, 6 bits, and all of `solarize`."""
    strengths = _strengths(image_HWC, 0.99, None, 32, 135, 0.99, 6)
    return _one(image_HWC, strengths, int(rng.integers(STEPS)), rng)


def _one(image_HWC: np.ndarray, strengths: dict, magnitude: int, rng: np.random.Generator) -> np.ndarray:
    name = list(OPERATIONS)[rng.integers(len(OPERATIONS))]
    strength = float(strengths[name][magnitude]) if name in strengths else 0.0
    if name in SIGNED and rng.integers(2):
        strength = -strength
    return apply(image_HWC, name, strength)


def apply(image_HWC: np.ndarray, name: str, strength: float) -> np.ndarray:
    """uint8[H, W, 1 or 3] -> the same after one of OPERATIONS."""
    grey = image_HWC.shape[2] == 1
    image = Image.fromarray(np.ascontiguousarray(image_HWC[:, :, 0] if grey else image_HWC))
    pixels = np.asarray(OPERATIONS[name](image, strength))
    return pixels[:, :, None] if grey else pixels


def _strengths(image_HWC: np.ndarray, shear, share, pixels, degrees, factor, bits) -> dict[str, np.ndarray]:
    """float[31] by operation, for those that have a strength; shifts by a share of the side, or in pixels."""
    height, width = image_HWC.shape[:2]
    steps = np.linspace(0.0, 1.0, STEPS)
    return {
        "shear_x": shear * steps,
        "shear_y": shear * steps,
        "translate_x": (share * width if pixels is None else pixels) * steps,
        "translate_y": (share * height if pixels is None else pixels) * steps,
        "rotate": degrees * steps,
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factor * steps),
        "posterize": 8 - np.round(bits * steps),
        "solarize": 255 * (1 - steps),
    }


def _affine(image: Image.Image, *row: float) -> Image.Image:
    """Each pixel from where these two rows of a matrix say that it was; nearest, black outside."""
    return image.transform(image.size, Image.Transform.AFFINE, row, Image.Resampling.NEAREST)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, value: _affine(image, 1, value, 0, 0, 1, 0),
    "shear_y": lambda image, value: _affine(image, 1, 0, 0, value, 1, 0),
    "translate_x": lambda image, value: _affine(image, 1, 0, -int(value), 0, 1, 0),
    "translate_y": lambda image, value: _affine(image, 1, 0, 0, 0, 1, -int(value)),
    "rotate": lambda image, value: image.rotate(value, Image.Resampling.NEAREST),
    "brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(1 + value),
    "color": lambda image, value: ImageEnhance.Color(image).enhance(1 + value),
    "contrast": lambda image, value: ImageEnhance.Contrast(image).enhance(1 + value),
    "sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(1 + value),
    "posterize": lambda image, value: ImageOps.posterize(image, int(value)),
    "solarize": lambda image, value: ImageOps.solarize(image, value),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
}
SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")


def specaugment(features_TM: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """SpecAugment (Park et al. 2019): two stripes of bands and two of frames take the mean of the sound's features.

    The sizes are those of the paper's policy LD (F = 27 bands, T = 100 frames, two stripes of either), drawn evenly
    from 0 on, without its time warp. A stripe of frames is at most a fifth of the sound, the bound p of its policies
    for Switchboard: LD has none, which could hide all of a word that lasts a second.

    Args:
      features_TM: float32[T, M].
      frames: how many of the T the sound has, at least 1; those behind it stay as they are.

    Returns:
      float32[T, M], another array.
    """
    features_TM, bands = features_TM.copy(), features_TM.shape[1]
    sound_TM = features_TM[:frames]
    mean = sound_TM.mean()
    for _ in range(2):
        size = rng.integers(min(27, bands) + 1)
        first = rng.integers(bands - size + 1)
        sound_TM[:, first : first + size] = mean
        size = rng.integers(min(100, frames // 5) + 1)
        first = rng.integers(frames - size + 1)
        sound_TM[first : first + size] = mean
    return features_TM


class Pick(abc.ABC):
    """A change that only chooses pixels, in two halves.

    Attributes:
      numbers: how many integers it draws.
    """

    numbers: int

    @abc.abstractmethod
    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
        """The integers for an image of this shape, [H, W, C]."""

    @abc.abstractmethod
    def apply(self, image_HWC: Any, drawn: Sequence[Any]) -> Any:
        """[H, W, C] of any dtype -> the same; image and integers are NumPy's, or both are of a program."""

    def __call__(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Both halves, on the host."""
        return self.apply(image_HWC, self.draw(image_HWC.shape, rng))


class _Flip(Pick):
    numbers = 1

    def draw(self, shape, rng):
        return (int(rng.random() < 0.5),)

    def apply(self, image_HWC, drawn):
        width = image_HWC.shape[1]
        return image_HWC.take(abs(drawn[0] * (width - 1) - np.arange(width)), 1, mode="clip")


class _Crop(Pick):
    numbers = 2

    def draw(self, shape, rng):
        return tuple(int(rng.integers(2 * (side // 8) + 1)) for side in shape[:2])

    def apply(self, image_HWC, drawn):
        for axis, first in enumerate(drawn):
            last = image_HWC.shape[axis] - 1
            at = np.arange(last + 1) + first - (last + 1) // 8
            # Reflected at the first pixel, then at the last.
            image_HWC = image_HWC.take(last - abs(last - abs(at)), axis, mode="clip")
        return image_HWC
