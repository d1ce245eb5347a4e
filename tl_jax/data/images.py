# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images as the arrays a network was trained on: resize, crop, scale, normalise.

    transform = ImageTransform(image_spec(checkpoint, None, 224, 3), augment=("flip",))
    transform(record, rng)["pixel_values"]    # float32[224, 224, 3]

What to do is read from the checkpoint (`image_spec`); Pillow resizes, as in the original processors, so pixels agree.
Crops start at floor((image - crop) / 2), as in transformers; torchvision rounds, so timm can be off by one pixel.
"""

import numpy as np
from PIL import Image

from tl_jax.data.augment import augmentations
from tl_jax.data.decode import with_channels
from tl_jax.data.examples import Examples
from tl_jax.data.preprocessor import ImageSpec, image_spec

__all__ = ["ImageSpec", "ImageTransform", "image_spec"]

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
        self._spec, self._augment = spec, augmentations(augment, magnitude)
        # What the arrays depend on beside the record; see `fingerprint`.
        self.identity = repr((spec, augment, magnitude))
        # Written out along a row: over three channels alone NumPy's inner loop took nine times as long at 224 pixels.
        self._mean_WC, self._std_WC = (np.tile(np.float32(v), spec.width) for v in (spec.mean, spec.std))

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`{"image": uint8[H, W, 1 or 3]}` -> `{"pixel_values": float32[height, width, channels]}`.

        The result depends on the image and `rng` alone; None leaves the random changes out.
        """
        spec = self._spec
        image_HWC = _resized(with_channels(record["image"], spec.channels), spec)
        image_HWC = _centre(image_HWC, spec.height, spec.width)
        if rng is not None:
            for change in self._augment:
                image_HWC = change(image_HWC, rng)
        if spec.bgr:
            image_HWC = image_HWC[:, :, ::-1]
        values_HWC = image_HWC.reshape(spec.height, -1).astype(np.float32)
        values_HWC *= np.float32(spec.scale)
        values_HWC -= self._mean_WC
        values_HWC /= self._std_WC
        return {"pixel_values": values_HWC.reshape(image_HWC.shape)}

    def collate(self, examples: list[dict], length: int | None = None) -> dict[str, np.ndarray]:
        """`{"pixel_values": float32[B, height, width, channels]}`; images have no length."""
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    def lengths(self, examples: Examples) -> None:
        """None: all images come out in one size, so nothing is sorted by length."""
        return None


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
