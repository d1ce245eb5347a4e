# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How records become a network's inputs: what the family reads, at which lengths, drawn how.

transform = inputs.transform(exp, checkpoint, train)
arrays = transform.collate([transform(train[0], None)], length=64)
"""

import numpy as np

from tl_jax import config
from tl_jax.core.errors import UserError
from tl_jax.data.examples import Examples
from tl_jax.data.images import ImageTransform
from tl_jax.data.preprocessor import image_spec
from tl_jax.data.sounds import SoundTransform, sound_spec
from tl_jax.data.texts import TextTransform
from tl_jax.loading import Checkpoint

_KINDS = {"pixel_values": "image", "input_ids": "text", "input_values": "sound", "input_features": "sound"}


def kind_of(checkpoint: Checkpoint) -> str:
    """`image`, `text` or `sound`: what the family reads."""
    return _KINDS[checkpoint.family.INPUTS[0]]


def transform(exp: config.Experiment, checkpoint: Checkpoint, train: Examples | None):
    """What makes arrays of records, by what the family reads."""
    wants = kind_of(checkpoint)
    if train is not None and train.kind != wants:
        family = checkpoint.family.__name__.rpartition(".")[2]
        raise UserError("data", f"holds {train.kind}s, the family {family} reads {wants}s", "choose another model")
    if wants == "image":
        size = getattr(checkpoint.config, "image_size", 224)
        spec = image_spec(checkpoint.folder, exp.data.image_size, size, checkpoint.config.num_channels)
        return ImageTransform(spec, exp.data.augment)
    if exp.data.augment:
        raise UserError("data.augment", f"is for images, this data holds {wants}s")
    if checkpoint.folder is None:
        needs = {"text": "tokenizer", "sound": "preprocessor"}[wants]
        raise UserError(
            "model", f"{wants}s need a {needs}", "give model.pretrained; model.init=random drops its weights"
        )
    if wants == "sound":
        return SoundTransform(sound_spec(checkpoint.folder), exp.data.max_length)
    return TextTransform(checkpoint.folder, exp.data.max_length, checkpoint.family.INPUTS, checkpoint.config.vocab_size)


def buckets(data: config.Data) -> tuple[int, ...]:
    return tuple(sorted({*data.buckets, data.max_length}))


def sampled_classes(data: config.Data, train: Examples) -> np.ndarray | None:
    """By what the training examples are drawn, if not all alike."""
    if data.sampler == "shuffle":
        return None
    if train.labels is None or train.labels.ndim != 1:
        raise UserError("data.sampler", "is balanced, which needs one class an example", "set data.sampler=shuffle")
    return train.labels
