# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What every task has, where it does not say otherwise; see `tl_jax/tasks` for whole ones."""

from collections.abc import Mapping

import jax
import numpy as np

# Stages that belong to a head: `dense` is its first layer where there are two, `lm_head` and `qa_outputs` speak for
# every position.
HEADS = ("dense", "head", "lm_head", "qa_outputs")
# Stages that serve training alone: they start fresh, train under every plan and are not written.
AIDS = ("regressor",)


class Task:
    """The base of a task.

    Attributes:
      outputs: what evaluation collects: names of the network's outputs, or of metrics that `loss` gives.
      pool: the feature that the head reads; `none` where it reads every position.
      metric, metrics: the one that chooses the best checkpoint, and all of them.
      smaller_is_better: those of them that are.
      soft_labels: `training_loss` takes a share of every class, float32[B, C], in place of one class, int32[B].
    """

    outputs: tuple[str, ...] = ("logits",)
    pool: str = "none"
    metric: str = "loss"
    metrics: tuple[str, ...] = ("loss",)
    smaller_is_better: tuple[str, ...] = ("loss",)
    soft_labels: bool = False

    def prepare(self, labels: np.ndarray) -> None:
        """Told the labels of all training examples, once, before training. What predicts must not depend on them: a run
        that is opened without its data predicts the same."""

    def arrange(self, model, groups: int) -> None:
        """Told the network of a run, abstract, once: what its own stages leave for `loss` may depend on the task. Never
        told a network that is written or handed to a user. The rows of a batch lie in so many groups of devices."""

    def training_loss(self, outputs, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What training minimises, in the form of `loss`, which is what evaluation reports."""
        return self.loss(outputs, batch)

    def windows(self, examples, transform):
        """The examples that batches are made of: the records themselves, or pieces of those too long for one input."""
        return examples

    def gathered(self, outputs: Mapping[str, np.ndarray], examples) -> Mapping[str, np.ndarray]:
        """Outputs by record, from those of `windows`."""
        return outputs
