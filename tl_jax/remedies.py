# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a config asks of the step against forgetting and over-fitting, built or refused.

mix = remedies.mix(exp.train, task, checkpoint)                  # None where the config asks for nothing
anchor = remedies.anchor(exp, checkpoint, model, trained)
"""

from collections.abc import Sequence

from tl_jax import config, loading
from tl_jax.core.errors import UserError
from tl_jax.inputs import kind_of
from tl_jax.loading import Checkpoint
from tl_jax.train.anchor import Anchor
from tl_jax.train.mixing import Mix


def mix(train: config.Train, task, checkpoint: Checkpoint) -> Mix | None:
    """How training images are mixed, where the config asks for it."""
    asked = [f"train.{name}" for name in ("mixup", "cutmix") if getattr(train, name)]
    if not asked:
        return None
    if kind_of(checkpoint) != "image" or not task.soft_labels:
        raise UserError(" and ".join(asked), "mixes images and their classes, this run has other data", "set it to 0")
    return Mix(checkpoint.family.INPUTS[0], len(task.classes), train.mixup, train.cutmix)


def anchor(exp: config.Experiment, checkpoint: Checkpoint, model, trained: Sequence[str]) -> Anchor | None:
    """What L2-SP holds, where the config asks for it."""
    if not exp.train.l2_sp:
        return None
    started = loading.foresee(loading.read_from(exp.model, checkpoint), model, exp.model.fresh).fresh
    fresh = tuple(path for path in trained if path in started)
    if len(fresh) == len(trained):
        raise UserError("train.l2_sp", "holds loaded weights, and nothing that trains was loaded", "set it to 0")
    loaded = tuple(path for path in trained if path not in started)
    return Anchor(loaded, fresh, exp.train.l2_sp, exp.train.l2_sp_fresh)
