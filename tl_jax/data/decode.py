# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image files as arrays.

    image_HWC = decode_image(pathlib.Path("cat.png"), "cat.png")

Every file gives uint8[H, W, channels] or a UserError that names it. Knows bytes and pixels, not models.
"""

import io
import pathlib

import numpy as np
from PIL import Image, ImageOps

from tl_jax.core.errors import UserError

# A few hundred bytes can declare gigapixels; a photograph of 64 Mpx takes 192 MB once decoded.
MAX_PIXELS = 64_000_000

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


def decode_image(source: pathlib.Path | bytes, where: str, channels: int = 3) -> np.ndarray:
    """The image in a file, the way it is to be looked at (EXIF orientation applied).

    Palette, CMYK and grey images are converted, an alpha channel is dropped as image processors do, and of an
    animation the first frame is taken.

    Args:
      source: the file, or its encoded bytes.
      where: what to call it in an error.
      channels: 3 for RGB, 1 for grey (ITU-R 601 luma).

    Returns:
      uint8[H, W, channels].

    Raises:
      UserError: not an image, truncated, above 64 Mpx, or of more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _pixels(image, where, channels)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(where) from error
    # On broken files Pillow raises OSError, SyntaxError, struct.error, IndexError and more.
    except Exception as error:
        told = "is not an image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise UserError(where, f"cannot be decoded: {' '.join(told.split())}", "replace or remove it") from error


def with_channels(image_HWC: np.ndarray, channels: int) -> np.ndarray:
    """uint8[H, W, 1 or 3] -> uint8[H, W, channels]: grey is repeated, RGB becomes luma."""
    if image_HWC.shape[2] == channels:
        return image_HWC
    if channels == 3:
        return np.repeat(image_HWC, 3, axis=2)
    return np.asarray(Image.fromarray(image_HWC).convert("L"))[:, :, None]


def _pixels(image: Image.Image, where: str, channels: int) -> np.ndarray:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(where)
    if image.mode.startswith(("I", "F")):
        bits = 16 if image.mode.startswith("I;16") else 32
        raise UserError(
            where, f"has {bits} bits a pixel, 8 bits a channel were expected", "convert it, choosing the range to keep"
        )
    image.load()
    image = ImageOps.exif_transpose(image)
    # Pillow warns about a palette with transparency unless it goes through RGBA.
    if image.mode in ("P", "PA") and (image.mode == "PA" or "transparency" in image.info):
        image = image.convert("RGBA")
    pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _too_large(where: str) -> UserError:
    return UserError(where, f"has more than {MAX_PIXELS // 1_000_000} million pixels", "scale it down")
