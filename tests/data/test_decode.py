# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image files of every sort become uint8[H, W, C] or an error that names the file."""

import io

import numpy as np
import pytest
from PIL import Image

from tl_jax.core.errors import UserError
from tl_jax.data.decode import MAX_PIXELS, decode_image, with_channels

RED = np.zeros((4, 6, 3), np.uint8) + np.array([200, 30, 20], np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    """Palette, grey, CMYK and alpha images come out as uint8[H, W, 3] near the colour that went in."""
    image = Image.fromarray(RED).convert(mode)
    pixels = decode_image(encoded(image, "TIFF"), "x")
    assert pixels.shape == (4, 6, 3) and pixels.dtype == np.uint8
    # A web palette and a 1-bit image keep only the nearest of their few colours.
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels, expected)
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(pixels, RED)


def test_palette_with_transparency_warns_nothing():
    """Pillow's warning about byte transparency in palettes does not reach the user."""
    image = Image.fromarray(RED).quantize(4)
    pixels = decode_image(encoded(image, transparency=bytes([0, 128, 255, 255])), "x")
    np.testing.assert_allclose(pixels.astype(int), RED, atol=2)  # the quantiser may round a colour


def test_grey_is_luma():
    """One channel is ITU-R 601 luma, computed here by hand."""
    pixels = decode_image(encoded(Image.fromarray(RED)), "x", channels=1)
    assert pixels.shape == (4, 6, 1)
    assert abs(int(pixels[0, 0, 0]) - (0.299 * 200 + 0.587 * 30 + 0.114 * 20)) <= 1  # Pillow rounds in fixed point
    np.testing.assert_array_equal(with_channels(RED, 1), pixels)


def test_animation_gives_its_first_frame():
    """Later frames are left out."""
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    pixels = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    np.testing.assert_array_equal(pixels[0, 0], [255, 0, 0])


def test_orientation_is_applied():
    """EXIF orientation 6 turns a 6x4 picture into a 4x6 one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(Image.fromarray(RED), "JPEG", exif=exif), "x").shape == (6, 4, 3)


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_truncated_file_is_named(cut):
    """A file cut anywhere, empty included, gives one line that names it."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="cat.png: cannot be decoded") as error:
        decode_image(encoded(Image.fromarray(noise))[:cut], "cat.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"<html></html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_named(content):
    """HTML under an image's name, and a PNG header with nothing behind."""
    with pytest.raises(UserError, match="cat.jpg"):
        decode_image(content, "cat.jpg")


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_pixel_bomb_is_refused_undecoded(side, monkeypatch):
    """81 Mpx is above our limit, 3.6 Gpx above Pillow's; neither is decoded."""
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match=f"more than {MAX_PIXELS // 1_000_000} million pixels"):
        decode_image(b"P6 %d %d 255\n" % (side, side), "bomb.ppm")


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_more_than_8_bits_is_refused(mode):
    """The range that matters is the user's to choose."""
    with pytest.raises(UserError, match="bits a pixel"):
        decode_image(encoded(Image.new(mode, (4, 4)), "TIFF"), "xray.tif")
