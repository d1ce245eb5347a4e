# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Language modelling: at every position, the word that comes next (Radford et al. 2019).

lm = Task(Config(), classes=(), pools=())
losses, metrics = lm.loss(outputs, {"label": following})      # int32[B, T], negative where nothing is asked
lm.measure({"logits": logits}, following, weights)            # perplexity and share of right words

A label is the word that follows its position, so labels are the text one token early: for a decoder alone its input
without the first token, for an encoder and a decoder what `decoder_input_ids` are one token late. The layer that
predicts, `lm_head`, is the family's own, because it may share the family's word embedding.
"""

# B batch, T time, V words, N examples, R resamples

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tl_jax.core import task
from tl_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the task: none."""


class Task(task.Task):
    """What the engine asks of a task.

    Args:
      config: the options.
      classes, pools: given for the sake of other tasks; not used.
    """

    pool = "lm_head"
    metrics = ("loss", "perplexity", "accuracy")
    smaller_is_better = ("loss", "perplexity")

    def __init__(self, config: Config, classes: tuple[str, ...], pools: tuple[str, ...]):
        self.config, self.classes = config, ()

    def stages(self, width: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The stages to append to a backbone: none, the family builds its `lm_head` where `pool` asks for it."""
        return {}

    def published(self) -> dict[str, object]:
        """What a `config.json` says of this head: nothing."""
        return {}

    def check_labels(self, labels: np.ndarray | None, keys: list[str], where: str) -> None:
        """Raise UserError unless every label is a row of whole numbers of which one at least counts."""
        if labels is None or labels.ndim != 2 or labels.dtype.kind != "i":
            raise UserError(where, "has no words to predict", "take a source whose labels are the following words")
        empty = np.flatnonzero((labels < 0).all(axis=1))
        if len(empty):
            more = f", as do {len(empty) - 1} more" if len(empty) > 1 else ""
            raise UserError(where, f"{keys[empty[0]]} asks for no word{more}")

    def loss(self, outputs, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross-entropy of each example over the positions that count, computed in float32.

        Args:
          outputs: `logits` float[B, T, V].
          batch: `label` int32[B, T] in [0, V), negative where a position does not count.

        Returns:
          float32[B], 0 where none counts; {"accuracy": float32[B]}, the share of right words.
        """
        logits_BTV, labels_BT = outputs["logits"].astype(jnp.float32), batch["label"]
        counts_BT = labels_BT >= 0
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, jnp.maximum(labels_BT, 0))
        right_BT = logits_BTV.argmax(axis=-1) == labels_BT

        def mean(values_BT):
            return jnp.sum(values_BT, axis=1, where=counts_BT) / jnp.maximum(counts_BT.sum(axis=1), 1)

        return mean(losses_BT), {"accuracy": mean(right_BT.astype(jnp.float32))}

    def measure(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray, weights_RN: np.ndarray):
        """Metrics of a whole set, each [R], in which every word weighs the same: perplexity, share of right words.

        Args:
          outputs: `logits` float32[N, T, V].
          weights_RN: how often each example counts; see `core.metrics`.
        """
        sums_N3 = np.array([_sums(logits_TV, labels_T) for logits_TV, labels_T in zip(outputs["logits"], labels)])
        loss_R, right_R, count_R = (weights_RN @ sums_N3).T
        return {"perplexity": np.exp(loss_R / count_R), "accuracy": right_R / count_R}


def published_classes(published: Mapping[str, Any], folder: pathlib.Path | None) -> tuple[str, ...]:
    """A published head has no classes but the words of its tokenizer."""
    return ()


def _sums(logits_TV: np.ndarray, labels_T: np.ndarray) -> tuple[float, float, int]:
    """(sum of losses, right words, words) of one example."""
    counts_T = labels_T >= 0
    logits_TV, labels_T = logits_TV[counts_T].astype(np.float64), labels_T[counts_T]
    chosen_T = np.take_along_axis(logits_TV, labels_T[:, None], axis=1)[:, 0]
    losses_T = np.logaddexp.reduce(logits_TV, axis=1) - chosen_T
    return losses_T.sum(), (logits_TV.argmax(axis=1) == labels_T).sum(), len(labels_T)
