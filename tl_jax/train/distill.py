# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation: a student learns from what a teacher says of an example, beside its label (Hinton et al. 2015).

    teacher = Teacher(model, chains)
    batch = teacher(params, batch)                            # the same with `teacher_logits` and `teacher_feature`
    loss_of = Lesson(temperature=2.0, weight=0.5).around(task.training_loss)
    losses, metrics = loss_of(outputs, batch)

The teacher runs before anything is differentiated, so no gradient reaches it. Knows arrays, not files.
"""

# B batch, C classes, D width

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Backbone, Chains

LossOf = Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network with a head that answers for a batch, without dropout and with running statistics.

    Attributes:
      model: abstract; only its `begin` is used.
      chains: its stages.
      dtype: in what it computes; None for that of its parameters.
    """

    model: Backbone
    chains: Chains
    dtype: Any = None

    def __call__(self, params: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The batch with `teacher_logits` float32[B, C] and `teacher_feature` float[B, D]."""
        outputs, _ = chain.run_chains(self.model, self.chains, params, batch, lambda _: EVAL, dtype=self.dtype)
        return {**batch, "teacher_logits": outputs["logits"], "teacher_feature": outputs["feature"]}


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What the teacher's answers make of a loss: (1 - weight) task + weight soft + features feature, for each example.

    Attributes:
      temperature: of `soft_loss`.
      weight: share of the soft loss in [0, 1].
      features: what the `feature_loss` is multiplied with.
      multi_label: every class is a question of its own.
    """

    temperature: float
    weight: float
    features: float = 0.0
    multi_label: bool = False

    def around(self, loss_of: LossOf) -> LossOf:
        """`loss_of` with the teacher's share, which is told apart in the metrics `distill` and `distill_features`.

        Of the student's outputs it reads `logits`, and for features `regressed`, or `feature` where that is absent. A
        share that counts nothing is not computed.
        """

        def loss(outputs, batch):
            losses_B, metrics = loss_of(outputs, batch)
            if self.weight:
                soft_B = soft_loss(outputs["logits"], batch["teacher_logits"], self.temperature, self.multi_label)
                losses_B = (1 - self.weight) * losses_B + self.weight * soft_B
                metrics = {**metrics, "distill": soft_B}
            if self.features:
                feature_BD = outputs["regressed"] if "regressed" in outputs else outputs["feature"]
                apart_B = feature_loss(feature_BD, batch["teacher_feature"])
                losses_B = losses_B + self.features * apart_B
                metrics = {**metrics, "distill_features": apart_B}
            return losses_B, metrics

        return loss


def soft_loss(student_BC: jax.Array, teacher_BC: jax.Array, temperature: float, multi_label: bool = False) -> jax.Array:
    """temperature² KL(p of the teacher || p of the student), float32[B], with p = softmax(logits / temperature).

    The square keeps the size of its gradient where the temperature changes (Hinton et al. 2015). With `multi_label`
    each class is a choice between two answers, whose logits are 0 and the class's, and the mean is taken over classes.

    Args:
      student_BC, teacher_BC: logits float[B, C], finite.
    """
    student, teacher = (x.astype(jnp.float32) / temperature for x in (student_BC, teacher_BC))
    if multi_label:
        student, teacher = (jnp.stack([jnp.zeros_like(x), x], axis=-1) for x in (student, teacher))
    log_s, log_t = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    apart = temperature**2 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)
    return apart.mean(axis=-1) if multi_label else apart


def feature_loss(student_BD: jax.Array, teacher_BD: jax.Array) -> jax.Array:
    """The mean over the width of the squared difference, float32[B], as Romero et al. (2015, FitNets) have it for hints
    but for the factor width / 2."""
    return jnp.mean(jnp.square(student_BD.astype(jnp.float32) - teacher_BD.astype(jnp.float32)), axis=-1)
