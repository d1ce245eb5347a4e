# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as the arrays a network was trained on: resize, crop, scale, normalise.

    transform = ImageTransform(image_spec(checkpoint, None, 224, 3), augment=("flip",))
    transform(record, rng)["pixel_values"]    # float32[224, 224, 3]

What to do is read from the checkpoint (`image_spec`); Pillow resizes, as in the original processors, so pixels agree.
Crops start at floor((image - crop) / 2), as in transformers; torchvision rounds, so timm can be off by one pixel.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tl_jax.core.errors import UserError
from tl_jax.data.augment import Change, Pick, augmentations
from tl_jax.data.decode import with_channels
from tl_jax.data.examples import Examples
from tl_jax.data.preprocessor import ImageSpec, image_spec

__all__ = ["ImageSpec", "ImageTransform", "KeptImages", "image_spec"]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class ImageTransform:
    """Records with an image -> float32 arrays.

    Args:
      spec: what to do.
      augment, magnitude: random changes while training, in order, at the final size; see `augment.augmentations`.
    """

    def __init__(self, spec: ImageSpec, augment: tuple[str, ...] = (), magnitude: int = 9):
        self._spec, self._augment = spec, tuple(zip(augment, augmentations(augment, magnitude)))
        # What the arrays depend on beside the record; see `fingerprint`.
        self.identity = repr((spec, augment, magnitude))
        # Written out along a row: over three channels alone NumPy's inner loop took nine times as long at 224 pixels.
        self._mean_WC, self._std_WC = (np.tile(np.float32(v), spec.width) for v in (spec.mean, spec.std))

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`{"image": uint8[H, W, 1 or 3]}` -> `{"pixel_values": float32[height, width, channels]}`.

        The result depends on the image and `rng` alone; None leaves the random changes out.
        """
        spec = self._spec
        image_HWC = _fitted(record["image"], spec)
        if rng is not None:
            for _, change in self._augment:
                image_HWC = change(image_HWC, rng)
        if spec.bgr:
            image_HWC = image_HWC[:, :, ::-1]
        values_HX = image_HWC.reshape(spec.height, -1)
        values_HX = _normalised(values_HX, spec.scale, self._mean_WC, self._std_WC)
        return {"pixel_values": values_HX.reshape(image_HWC.shape)}

    def collate(self, examples: list[dict], length: int | None = None) -> dict[str, np.ndarray]:
        """`{"pixel_values": float32[B, height, width, channels]}`; images have no length."""
        return _stacked(examples)

    def lengths(self, examples: Examples) -> None:
        """None: all images come out in one size, so nothing is sorted by length."""
        return None

    def kept(self, augment: bool) -> "KeptImages":
        """The same in two halves, with the random changes or without."""
        return KeptImages(self._spec, self._augment if augment else ())


class KeptImages:
    """What `ImageTransform` does, with all that differs from epoch to epoch left to a program.

    Args:
      spec: what to do.
      augment: random changes, each with its name.

    Attributes:
      numbers: K, how many integers the random changes of an image draw.
      against: why these cannot be left to a program; None where they can.
    """

    def __init__(self, spec: ImageSpec, augment: Sequence[tuple[str, Change]] = ()):
        self._spec = spec
        self._picks = [change for _, change in augment if isinstance(change, Pick)]
        self.numbers = sum(pick.numbers for pick in self._picks)
        others = [name for name, change in augment if not isinstance(change, Pick)]
        self.against = f"Pillow computes {', '.join(others)} of data.augment, on the host" if others else None

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`{"image": uint8[H, W, 1 or 3]}` -> `{"pixel_values": uint8[height, width, channels]}`; nothing is random.

        Raises:
          UserError: images of another dtype.
        """
        image_HWC = _fitted(record["image"], self._spec)
        if image_HWC.dtype != np.uint8:
            raise UserError("data", f"holds images of {image_HWC.dtype}, uint8 was expected", "set train.resident=off")
        return {"pixel_values": image_HWC}

    def collate(self, examples: list[dict], length: int | None = None) -> dict[str, np.ndarray]:
        """`{"pixel_values": uint8[B, height, width, channels]}`."""
        return _stacked(examples)

    def draw(self, rng: np.random.Generator) -> list[int]:
        """The K integers that `ImageTransform` would draw."""
        assert self.against is None, self.against
        shape = self._spec.height, self._spec.width, self._spec.channels
        return [number for pick in self._picks for number in pick.draw(shape, rng)]

    def finish(self, kept: Mapping[str, jax.Array], drawn_BK: jax.Array) -> dict[str, jax.Array]:
        """Within a program, the arrays of `ImageTransform`, bit for bit.

        Args:
          kept: `pixel_values` uint8[B, height, width, channels], beside what stays as it is.
          drawn_BK: int32, a row of what `draw` returns for each.
        """
        images_BHWC = jax.vmap(self._changed)(kept["pixel_values"], drawn_BK)
        if self._spec.bgr:
            images_BHWC = images_BHWC[..., ::-1]
        # Looked up: a compiler divides by multiplying with the reciprocal, and rounds a product and a sum once.
        channels = jnp.arange(self._spec.channels)
        values_BHWC = self._table.at[images_BHWC, channels].get(mode="promise_in_bounds")
        return {**kept, "pixel_values": values_BHWC}

    def _changed(self, image_HWC, drawn_K):
        for pick in self._picks:
            image_HWC, drawn_K = pick.apply(image_HWC, drawn_K[: pick.numbers]), drawn_K[pick.numbers :]
        return image_HWC

    @property
    def _table(self) -> jax.Array:
        """float32[256, channels]: what normalising makes of every pixel."""
        spec = self._spec
        pixels = np.tile(np.arange(256)[:, None], spec.channels)
        return jnp.asarray(_normalised(pixels, spec.scale, np.float32(spec.mean), np.float32(spec.std)))


def _fitted(image_HWC: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """uint8[height, width, channels]: in the channels and the size of the network."""
    return _centre(_resized(with_channels(image_HWC, spec.channels), spec), spec.height, spec.width)


def _normalised(pixels: np.ndarray, scale: float, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """float32, of the shape of `pixels`; mean and deviation float32, along the last axis."""
    values = pixels.astype(np.float32)
    values *= np.float32(scale)
    values -= mean
    values /= std
    return values


def _stacked(examples: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _resized(image_HWC: np.ndarray, spec: ImageSpec) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    if spec.resize == "none":
        return image_HWC
    if spec.resize == "shortest":
        short, edge = min(height, width), spec.resize_to[0]
        new_height, new_width = edge * height // short, edge * width // short
    else:
        new_height, new_width = spec.resize_to
    if (new_height, new_width) == (height, width):
        return image_HWC
    grey = image_HWC.shape[2] == 1
    image = Image.fromarray(image_HWC[:, :, 0] if grey else image_HWC)
    pixels = np.asarray(image.resize((new_width, new_height), _FILTERS[spec.resample]))
    return pixels[:, :, None] if grey else pixels


def _centre(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[height, width, C]: the middle of the image, with zeros around it where it is too small."""
    missing = [max(want - have, 0) for want, have in zip((height, width), image_HWC.shape)]
    if any(missing):
        image_HWC = np.pad(image_HWC, [(-(-m // 2), m // 2) for m in missing] + [(0, 0)])
    top, left = (image_HWC.shape[0] - height) // 2, (image_HWC.shape[1] - width) // 2
    return image_HWC[top : top + height, left : left + width]
