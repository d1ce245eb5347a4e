# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint wants its images, read from the files that publish it.

    spec = image_spec(checkpoint, image_size=None, default_size=224, channels=3)

In this order: `preprocessor_config.json` (transformers), `pretrained_cfg` in `config.json` (timm), `mean` and `std` in
`config.json`, else the ImageNet mean and deviation. A step that we do not do is an error, never left out.
"""

import json
import pathlib
from dataclasses import dataclass

from tl_jax.core.errors import UserError, shorten

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The numbers of PIL.Image.Resampling.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# What a bare number means as `size`: the shorter side for these processors, a square for the others.
_SHORTEST = ("ConvNext", "CLIP", "ChineseCLIP", "Bit", "PoolFormer", "MobileNet")
# Steps of single processors (MobileViT, EfficientNet, DETR) that change what the network sees.
_NOT_DONE = ("do_flip_channel_order", "include_top", "rescale_offset", "do_pad", "do_thumbnail", "do_align_long_axis")


@dataclass(frozen=True)
class ImageSpec:
    """What becomes of an image.

    Attributes:
      height, width: of the array, in pixels; a larger image is cropped about its centre, a smaller one padded with 0.
      mean, std: by channel, of scaled values: (pixel * scale - mean) / std.
      scale: usually 1/255.
      resample: `nearest`, `lanczos`, `bilinear`, `bicubic`, `box` or `hamming`.
      resize: before the crop: `exact` to `resize_to`, `shortest` to bring the shorter side to `resize_to[0]`, `none`.
      resize_to: (height, width) in pixels.
      channels: 3 for RGB, 1 for grey.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    resample: str = "bilinear"
    resize: str = "exact"
    resize_to: tuple[int, int] = (0, 0)
    channels: int = 3


def image_spec(
    checkpoint: pathlib.Path | None, image_size: int | None, default_size: int | tuple[int, int], channels: int
) -> ImageSpec:
    """The preprocessing that a checkpoint was trained with.

    Args:
      checkpoint: the folder of the published files; None for a network of one's own.
      image_size: side in pixels instead of the published size; a larger resize before the crop grows in proportion.
      default_size: side, or (height, width), where no file says it.
      channels: of the network's input; published RGB means are averaged for 1.

    Raises:
      UserError: a file that is not JSON, lacks what it announces, or asks for a step that is not done here.
    """
    size = (default_size, default_size) if isinstance(default_size, int) else tuple(default_size)
    size = (image_size, image_size) if image_size else size
    processor = _json(checkpoint, "preprocessor_config.json")
    config = _json(checkpoint, "config.json")
    if processor:
        return _transformers(processor, image_size, size, channels, str(checkpoint / "preprocessor_config.json"))
    for published in (config.get("pretrained_cfg"), config):
        if isinstance(published, dict) and "mean" in published and "std" in published:
            return _timm(published, image_size, size, channels, str(checkpoint / "config.json"))
    mean, std = _by_channel(_IMAGENET[0], channels, ""), _by_channel(_IMAGENET[1], channels, "")
    return ImageSpec(*size, mean, std, resize_to=size, channels=channels)


def _transformers(conf: dict, image_size, default, channels: int, where: str) -> ImageSpec:
    kind = str(conf.get("image_processor_type") or conf.get("feature_extractor_type") or "")
    not_done = [name for name in _NOT_DONE if conf.get(name)] + [kind] * kind.startswith(("Levit", "Perceiver"))
    if not_done:
        raise UserError(
            where, f"asks for {shorten(not_done)}, which is not done here", "remove it if you can do without"
        )
    edge, to = _size(conf.get("size", {"height": default[0], "width": default[1]}), kind.startswith(_SHORTEST), where)
    crop = conf.get("crop_size") if conf.get("do_center_crop") else None
    final = to if crop is None else _size(crop, False, where)[1]
    if image_size:
        # The crop keeps the same part of the resized image.
        to = tuple(round(side * image_size / last) for side, last in zip(to, final))
        final = (image_size, image_size)
    resize = "none" if not conf.get("do_resize", True) else "exact" if edge is None else "shortest"
    if resize == "shortest" and (kind.startswith("ConvNext") or conf.get("crop_pct")):
        # ConvNeXt keeps `crop_pct` of an image below 384 pixels; from there on it squeezes the image to a square.
        resize = "shortest" if to[0] < 384 else "exact"
        to = (int(to[0] / (conf.get("crop_pct") or 224 / 256)),) * 2 if to[0] < 384 else to
    normalise = conf.get("do_normalize", True)
    if normalise and not ("image_mean" in conf and "image_std" in conf):
        raise UserError(where, "asks to normalise without image_mean and image_std", "add them")
    resample = conf.get("resample", 2 if kind.startswith("ViT") else 3)
    if not isinstance(resample, int) or not 0 <= resample < len(_RESAMPLE):
        raise UserError(where, f"resample is {resample!r}, a number from 0 to {len(_RESAMPLE) - 1} was expected")
    return ImageSpec(
        *final,
        mean=_by_channel(conf["image_mean"] if normalise else (0.0,), channels, where),
        std=_by_channel(conf["image_std"] if normalise else (1.0,), channels, where),
        scale=conf.get("rescale_factor", 1 / 255) if conf.get("do_rescale", True) else 1.0,
        resample=_RESAMPLE[resample],
        resize=resize,
        resize_to=to,
        channels=channels,
    )


def _timm(conf: dict, image_size, default, channels: int, where: str) -> ImageSpec:
    """The evaluation transform of timm; without `crop_pct` the image is brought to its size at once."""
    size = (image_size, image_size) if image_size else tuple(conf.get("input_size", (0, *default))[-2:])
    resample = conf.get("interpolation", "bicubic" if "crop_pct" in conf else "bilinear")
    mode = conf.get("crop_mode", "center")
    if resample not in _RESAMPLE or mode not in ("center", "squash"):
        raise UserError(where, f"interpolation {resample!r} or crop_mode {mode!r} is not done here", "use another")
    to = tuple(int(side / (conf.get("crop_pct") or 1.0)) for side in size)
    shortest = "crop_pct" in conf and mode == "center" and size[0] == size[1]
    return ImageSpec(
        *size,
        mean=_by_channel(conf["mean"], channels, where),
        std=_by_channel(conf["std"], channels, where),
        resample=resample,
        resize="shortest" if shortest else "exact",
        resize_to=to,
        channels=channels,
    )


def _size(size, shortest: bool, where: str) -> tuple[int | None, tuple[int, int]]:
    """(shorter side or None, (height, width)) of the ways in which transformers writes a size."""
    if isinstance(size, int):
        return (size if shortest else None), (size, size)
    if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int) and "longest_edge" not in size:
        return size["shortest_edge"], (size["shortest_edge"],) * 2
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return None, (size["height"], size["width"])
    raise UserError(
        where, f"size {size!r} is not known", 'write {"height": 224, "width": 224} or {"shortest_edge": 224}'
    )


def _by_channel(values, channels: int, where: str) -> tuple[float, ...]:
    values = (values,) if isinstance(values, int | float) else tuple(values)
    if len(values) == channels:
        return tuple(float(value) for value in values)
    if channels == 1 or len(values) == 1:
        return (float(sum(values) / len(values)),) * channels
    raise UserError(where, f"has mean and std of {len(values)} channels, the network takes {channels}")


def _json(checkpoint: pathlib.Path | None, name: str) -> dict:
    if checkpoint is None or not (checkpoint / name).is_file():
        return {}
    try:
        content = json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(checkpoint / name), f"is not JSON ({error})", "fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise UserError(str(checkpoint / name), "holds no JSON object", "fetch the checkpoint again")
    return content
