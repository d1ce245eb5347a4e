# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How records become a network's inputs: what the family reads, at which lengths, drawn how.

transform = inputs.transform(exp, checkpoint, train)
arrays = transform.collate([transform(train[0], None)], length=64)
"""

import jax
import numpy as np

from tl_jax import config
from tl_jax.core.chain import Backbone
from tl_jax.core.errors import UserError
from tl_jax.data import lengths, packing
from tl_jax.data.examples import Examples
from tl_jax.data.images import ImageTransform
from tl_jax.data.preprocessor import image_spec
from tl_jax.data.sounds import SoundTransform, sound_spec
from tl_jax.data.texts import TextTransform
from tl_jax.data.vocabulary import read_tokenizer
from tl_jax.loading import Checkpoint

_KINDS = {"pixel_values": "image", "input_ids": "text", "input_values": "sound", "input_features": "sound"}
_CHANGES = {"image": ("flip", "crop", "rand", "trivial"), "sound": ("specaugment",), "text": ()}


def kind_of(checkpoint: Checkpoint) -> str:
    """`image`, `text` or `sound`: what the family reads."""
    return _KINDS[checkpoint.family.INPUTS[0]]


def transform(exp: config.Experiment, checkpoint: Checkpoint, train: Examples | None):
    """What makes arrays of records, by what the family reads."""
    wants = kind_of(checkpoint)
    if train is not None and train.kind != wants:
        family = checkpoint.family.__name__.rpartition(".")[2]
        raise UserError("data", f"holds {train.kind}s, the family {family} reads {wants}s", "choose another model")
    wrong = [name for name in exp.data.augment if name not in _CHANGES[wants]]
    if wrong:
        raise UserError(
            "data.augment", f"{', '.join(wrong)} cannot change {wants}s, which this data holds", "leave it out"
        )
    if wants == "image":
        return ImageTransform(reading(exp, checkpoint), exp.data.augment, exp.data.magnitude)
    if checkpoint.folder is None:
        needs = {"text": "tokenizer", "sound": "preprocessor"}[wants]
        raise UserError(
            "model", f"{wants}s need a {needs}", "give model.pretrained; model.init=random drops its weights"
        )
    if wants == "sound":
        return SoundTransform(reading(exp, checkpoint), exp.data.max_length, "specaugment" in exp.data.augment)
    return TextTransform(checkpoint.folder, exp.data.max_length, checkpoint.family.INPUTS, checkpoint.config.vocab_size)


def reading(exp: config.Experiment, checkpoint: Checkpoint):
    """What decides how a record is read, to compare with another network's: an `ImageSpec`, a `SoundSpec`, or the id of
    every token."""
    wants = kind_of(checkpoint)
    if wants == "image":
        size = getattr(checkpoint.config, "image_size", 224)
        return image_spec(checkpoint.folder, exp.data.image_size, size, checkpoint.config.num_channels)
    return sound_spec(checkpoint.folder) if wants == "sound" else read_tokenizer(checkpoint.folder).get_vocab()


def hides_spans(exp: config.Experiment, checkpoint: Checkpoint) -> bool:
    """Whether `data.augment` asks the network itself to hide spans of its sounds, as those of raw waves do.

    Raises:
      UserError: such a network that hides none, or a plan under which nothing draws.
    """
    if "specaugment" not in exp.data.augment or reading(exp, checkpoint).kind != "waveform":
        return False
    found = checkpoint.config
    shares = (getattr(found, "mask_time_prob", 0.0), getattr(found, "mask_feature_prob", 0.0))
    if not any(shares) or not found.apply_spec_augment:
        fields = "model.config.apply_spec_augment=True and model.config.mask_time_prob=0.05"
        raise UserError("data.augment", "is specaugment, and this network's config hides no spans", f"set {fields}")
    if "none" in (exp.plan.dropout, *(phase.plan.dropout for phase in exp.phases)):
        raise UserError("data.augment", "is specaugment, and under plan.dropout=none nothing draws", "leave one out")
    return True


def check_room(model: Backbone, batch) -> None:
    """Raise UserError where the network has no room for the longest batch (abstract), which may come late in a run."""
    first = next(iter(model.chains))
    try:
        jax.eval_shape(lambda batch: model.begin(first, batch, {}).x, batch)
    except UserError as error:
        raise UserError("data.max_length", error.what, "lower it") from error


def buckets(data: config.Data, transform, lengths_N: np.ndarray | None) -> tuple[int, ...]:
    """Padded lengths, ascending, as `data.buckets` has them or by what examples measure."""
    shortest = getattr(transform, "shortest", 1)
    if data.buckets is None and lengths_N is not None and shortest is not None:
        return lengths.choose(lengths_N, data.max_length, shortest)
    return tuple(sorted({*(data.buckets or ()), data.max_length}))


def packed(exp: config.Experiment, checkpoint: Checkpoint, train: Examples) -> Examples | None:
    """Rows of several training texts where `data.packing` asks for them, else None.

    Raises:
      UserError: a network that cannot tell the texts of a row apart.
    """
    if not exp.data.packing:
        return None
    if "segments" not in checkpoint.family.INPUTS:
        family = checkpoint.family.__name__.rpartition(".")[2]
        what = f"puts several texts in a row, which the family {family} cannot tell apart"
        raise UserError("data.packing", what, "leave it out")
    return packing.packed(train, exp.data.max_length)


def sampled_classes(data: config.Data, train: Examples) -> np.ndarray | None:
    """By what the training examples are drawn, if not all alike."""
    if data.sampler == "shuffle":
        return None
    if train.labels is None or train.labels.ndim != 1:
        raise UserError("data.sampler", "is balanced, which needs one class an example", "set data.sampler=shuffle")
    return train.labels
