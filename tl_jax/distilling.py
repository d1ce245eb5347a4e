# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The teacher that a config names: opened, compared with the student, read.

    teacher = open_teacher(exp, task)               # its config.json, no weight; None where the config names none
    teacher.check(exp, checkpoint, transform)       # reads it the same inputs?
    teacher.load(mesh).params

`train.distill` is what it is good for.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax import config, inputs, loading, pretrained
from tl_jax.core import chain
from tl_jax.core.chain import Backbone
from tl_jax.core.errors import UserError, shorten
from tl_jax.core.task import AIDS
from tl_jax.loading import Checkpoint, Loaded
from tl_jax.parallel import sharding
from tl_jax.train import distill

(_REGRESSOR,) = AIDS
_WHERE = "distill.teacher"


class Regressor(nnx.Linear):
    """Makes the student's pooled feature as wide as the teacher's, for comparison in training (Romero et al. 2015)."""

    def __call__(self, x, context):
        """Named outputs with `feature` float[B, D] -> the same with `regressed` float[B, of the teacher's width]."""
        return {**x, "regressed": super().__call__(x["feature"])}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A published classifier, abstract until it is loaded.

    Attributes:
      lesson: what is made of its answers.
      forward: what runs it.
    """

    lesson: distill.Lesson
    forward: distill.Teacher
    checkpoint: Checkpoint
    add_head: Any

    def check(self, exp: config.Experiment, checkpoint: Checkpoint, batch: dict[str, Any]) -> None:
        """Raise UserError unless it reads the batches that the student reads.

        Args:
          checkpoint: the student's.
          batch: abstract, as the student gets it.
        """
        ours, theirs = inputs.kind_of(checkpoint), inputs.kind_of(self.checkpoint)
        if ours != theirs:
            raise UserError(_WHERE, f"reads {theirs}s, the student {ours}s", "choose another teacher")
        mine, its = (inputs.reading(exp, each) for each in (checkpoint, self.checkpoint))
        if mine != its:
            told = "has another vocabulary than the student"
            if ours != "text":
                fields = [name for name in vars(mine) if getattr(mine, name) != getattr(its, name)]
                what = [f"{name} {getattr(its, name)}, the student {getattr(mine, name)}" for name in fields]
                told = f"reads {ours}s in another way: {shorten(what)}"
            raise UserError(_WHERE, told, "choose a teacher that reads what the student reads")
        try:
            jax.eval_shape(self.forward, chain.split(self.forward.model)[1], batch)
        except UserError as error:
            raise UserError(_WHERE, f"cannot read the student's batches: {error}") from error

    def load(self, mesh: jax.sharding.Mesh) -> Loaded:
        """Its weights, float32, sharded as its own family says."""
        return loading.load(self.checkpoint, self.forward.model, self.add_head, dtype="float32", mesh=mesh)

    def shapes(self, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """What `load` gives, abstract."""
        params = chain.split(self.forward.model)[1]
        places = sharding.param_shardings(params, mesh, self.checkpoint.family.SHARDING)
        return {path: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=places[path]) for path, p in params.items()}


def adder(add_head: Callable[[Backbone, nnx.Rngs], None], teacher: Teacher | None):
    """`add_head`, which then also appends what makes a student's features as wide as the teacher's, where they are
    compared and are not."""

    def add(model: Backbone, rngs: nnx.Rngs) -> None:
        add_head(model, rngs)
        if teacher is not None and teacher.lesson.features and teacher.forward.model.width != model.width:
            model.add_stage(_REGRESSOR, Regressor(model.width, teacher.forward.model.width, rngs=rngs))

    return add


def open_teacher(exp: config.Experiment, task) -> Teacher | None:
    """The teacher that a config names, if any.

    Raises:
      UserError: nothing there, no classifier, one of other classes, a task that has no classes.
    """
    asked = exp.distill
    if asked.teacher is None:
        return None
    if exp.task.name != "classification":
        raise UserError(_WHERE, f"teaches classification, this run's task is {exp.task.name}", "leave it out")
    checkpoint = loading.open_checkpoint(asked.teacher)
    published = pretrained.published_head(checkpoint)
    multi_label = task.config.multi_label
    if published is None or published[0].outputs != task.outputs or type(published[0]) is not type(task):
        raise UserError(_WHERE, f"{asked.teacher} has no head for classification", "fine-tune it first")
    its = published[0]
    if its.config.multi_label != multi_label:
        one = "several labels" if its.config.multi_label else "one label"
        raise UserError(_WHERE, f"gives {one} an example", f"set task.options.multi_label={its.config.multi_label}")
    wrong = _other_classes(task.classes, its.classes)
    if wrong:
        raise UserError(_WHERE, wrong, "choose a teacher of the same classes in the same order")
    if asked.features and "distilled" in (task.pool, its.pool):
        raise UserError("distill.features", "compares one pooled feature, the pool `distilled` has two", "set it to 0")
    checkpoint, add_head = checkpoint.for_pool(its.pool), loading.adder(its)
    model = loading.abstract(checkpoint, add_head)
    lesson = distill.Lesson(asked.temperature, asked.weight, asked.features, multi_label)
    dtype = jnp.bfloat16 if exp.model.dtype == "bfloat16" else None
    return Teacher(lesson, distill.Teacher(model, chain.split(model)[0], dtype), checkpoint, add_head)


def _other_classes(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str | None:
    """How the classes differ; names that `transformers` makes up where none are given are no names."""
    if len(ours) != len(theirs):
        return f"knows {len(theirs)} classes, this run has {len(ours)}"
    made_up = tuple(f"LABEL_{i}" for i in range(len(ours)))
    if ours == theirs or made_up in (ours, theirs):
        return None
    index = next(i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1])
    return f"calls class {index} {theirs[index]!r}, this run calls it {ours[index]!r}"
