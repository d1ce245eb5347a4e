# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint wants its images, read from the files that publish it.

    spec = image_spec(checkpoint, image_size=None, default_size=224, channels=3)

In this order: the processor's own file (transformers), `pretrained_cfg` in `config.json` (timm), `mean` and `std` or a
sentence called `input` in `config.json`, else the ImageNet mean and deviation. A step that we do not do is an error,
never left out.
"""

import pathlib
import re
from dataclasses import dataclass

from tl_jax.core.errors import UserError, did_you_mean, shorten
from tl_jax.data.published import beside, processor, read_json

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The numbers of PIL.Image.Resampling.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

_HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
_CROPPED = {"do_center_crop": True, "crop_size": 224}
_MOBILENET = {**_HALF, **_CROPPED, "size": {"shortest_edge": 256}, "resample": 2}
_OPENAI = {
    **_CROPPED,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "size": {"shortest_edge": 224},
    "resample": 3,
}
# What the processors of transformers do where their file is silent, by name without "ImageProcessor".
_DEFAULTS = {
    "ViT": {**_HALF, "size": 224, "resample": 2},
    "DeiT": {**_HALF, **_CROPPED, "size": 256, "resample": 3},
    "Siglip": {**_HALF, "size": {"height": 224, "width": 224}, "resample": 3},
    "ConvNext": {**_HALF, "size": {"shortest_edge": 384}, "resample": 3, "crop_pct": 224 / 256},
    "EfficientNet": {**_HALF, "size": 346, "crop_size": 289, "resample": 3, "include_top": True},
    "MobileNetV1": _MOBILENET,
    "MobileNetV2": _MOBILENET,
    "CLIP": _OPENAI,
    "Bit": _OPENAI,
}
# Where a bare number as `size` is a square; it is the shorter side for the others.
_SQUARE = ("ViT", "DeiT", "EfficientNet")
# Which of them a file means that names none.
_OF_MODEL = {
    "vit": "ViT",
    "swin": "ViT",
    "deit": "DeiT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "clip": "CLIP",
    "siglip": "Siglip",
    "resnet": "ConvNext",
    "convnext": "ConvNext",
    "convnextv2": "ConvNext",
    "efficientnet": "EfficientNet",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
}
# Steps of other processors that change what the network sees.
_NOT_DONE = ("do_flip_channel_order", "do_pad", "do_thumbnail", "do_align_long_axis")
# "BGR, 227x227, pixel 0..255 minus mean [104,117,123] (B,G,R); no division" or "RGB 96x96, float32, pixel/255".
_SENTENCE = re.compile(
    r"(?P<order>RGB|BGR),? (?P<side>\d+)x(?P=side)(, float32)?, (pixel(?P<unit>/255)|(raw )?pixel( values)? 0\.\.255)"
    r"( minus mean \[(?P<mean>\d+(\.\d+)?(, ?\d+(\.\d+)?){2})\] \((?P<by>R,G,B|B,G,R)\))?([,;] no (division|scaling))?"
)


@dataclass(frozen=True)
class ImageSpec:
    """What becomes of an image.

    Attributes:
      height, width: of the array, in pixels; a larger image is cropped about its centre, a smaller one padded with 0.
      mean, std: by channel of the array, of scaled values: (pixel * scale - mean) / std.
      scale: usually 1/255.
      resample: `nearest`, `lanczos`, `bilinear`, `bicubic`, `box` or `hamming`.
      resize: before the crop: `exact` to `resize_to`, `shortest` to bring the shorter side to `resize_to[0]`, `none`.
      resize_to: (height, width) in pixels.
      channels: 3 for colour, 1 for grey.
      bgr: the colours of the array are blue, green and red, as Caffe has them; else red, green and blue.
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
    bgr: bool = False


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
    config = read_json(checkpoint, "config.json")
    fields, where = processor(checkpoint, "image_processor")
    if fields:
        return _transformers(fields, str(config.get("model_type")), image_size, channels, where)
    where = "" if checkpoint is None else str(beside(checkpoint, "config.json"))
    for published in (config.get("pretrained_cfg"), config):
        if isinstance(published, dict) and "mean" in published and "std" in published:
            return _timm(published, image_size, size, channels, where)
    if isinstance(config.get("input"), str):
        return _sentence(config["input"], image_size, channels, where)
    mean, std = _by_channel(_IMAGENET[0], channels, ""), _by_channel(_IMAGENET[1], channels, "")
    return ImageSpec(*size, mean, std, resize_to=size, channels=channels)


def _transformers(fields: dict, model_type: str, image_size, channels: int, where: str) -> ImageSpec:
    kind = _kind(fields, model_type, where)
    conf = {**_DEFAULTS[kind], **{name: value for name, value in fields.items() if value is not None}}
    convnext, resized, cropped = kind == "ConvNext", conf.get("do_resize", True), conf.get("do_center_crop", False)
    not_done = [name for name in (*_NOT_DONE, *["do_center_crop"] * convnext) if conf.get(name)]
    if not_done:
        raise UserError(
            where, f"asks for {shorten(not_done)}, which is not done here", "remove it if you can do without"
        )
    edge, to = _size(conf["size"], kind not in _SQUARE, where)
    if convnext and edge is None:
        raise UserError(where, f"size {conf['size']} is not known to {kind}", 'write {"shortest_edge": 224}')
    if not cropped and (not resized or (edge is not None and not convnext)):
        raise UserError(
            where,
            f"leaves images of many sizes (do_resize {resized}, size {conf['size']}, no crop)",
            f'write "do_resize": true, "size": {{"height": {to[0]}, "width": {to[1]}}}',
        )
    final = _size(conf["crop_size"], False, where)[1] if cropped else to
    if image_size:
        # The crop keeps the same part of the resized image.
        to = tuple(round(side * image_size / last) for side, last in zip(to, final))
        final = (image_size, image_size)
    resize = "none" if not resized else "exact" if edge is None else "shortest"
    if convnext:
        # ConvNeXt keeps `crop_pct` of an image below 384 pixels; from there on it squeezes the image to a square.
        resize = "shortest" if to[0] < 384 else "exact"
        to = (int(to[0] / conf["crop_pct"]),) * 2 if to[0] < 384 else to
    resample = conf["resample"]
    if not isinstance(resample, int) or not 0 <= resample < len(_RESAMPLE):
        raise UserError(where, f"resample is {resample!r}, a number from 0 to {len(_RESAMPLE) - 1} was expected")
    mean, std = _statistics(conf, kind, channels, where)
    return ImageSpec(
        *final,
        mean=mean,
        std=std,
        scale=conf.get("rescale_factor", 1 / 255) if conf.get("do_rescale", True) else 1.0,
        resample=_RESAMPLE[resample],
        resize=resize,
        resize_to=to,
        channels=channels,
    )


def _kind(fields: dict, model_type: str, where: str) -> str:
    """The processor's name without its endings, one of those built here."""
    name = str(fields.get("image_processor_type") or fields.get("feature_extractor_type") or "")
    named = re.fullmatch(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", name)
    kind = named[1] if named else _OF_MODEL.get(model_type)
    if kind not in _DEFAULTS:
        raise UserError(
            where,
            f"asks for {name or 'no image_processor_type'}, which is not done here"
            + did_you_mean(name, [f"{kind}ImageProcessor" for kind in _DEFAULTS]),
        )
    return kind


def _statistics(conf: dict, kind: str, channels: int, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of all that is subtracted and divided by."""
    normalise, theirs = conf.get("do_normalize", True), _by_channel(conf["image_std"], channels, where)
    mean = _by_channel(conf["image_mean"] if normalise else (0.0,), channels, where)
    std = theirs if normalise else (1.0,) * channels
    if kind == "EfficientNet":
        # It may take 1 from scaled values first, and divide by the deviation once more at the end.
        offset = float(conf.get("do_rescale", True) and conf.get("rescale_offset", False))
        mean = tuple(value + offset for value in mean)
        std = tuple(value * (again if conf["include_top"] else 1.0) for value, again in zip(std, theirs))
    return mean, std


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


def _sentence(text: str, image_size, channels: int, where: str) -> ImageSpec:
    """What a few words say, none of them left over; the image is brought to its size at once."""
    said = _SENTENCE.fullmatch(text)
    if said is None:
        raise UserError(where, f"says of its input {text!r}, which is not understood", "add a preprocessor_config.json")
    size = (image_size or int(said["side"]),) * 2
    means = dict(zip((said["by"] or "R,G,B").split(","), map(float, (said["mean"] or "0,0,0").split(","))))
    return ImageSpec(
        *size,
        mean=_by_channel(tuple(means[colour] for colour in said["order"]), channels, where),
        std=(1.0,) * channels,
        scale=1 / 255 if said["unit"] else 1.0,
        resize_to=size,
        channels=channels,
        bgr=said["order"] == "BGR" and channels == 3,
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
