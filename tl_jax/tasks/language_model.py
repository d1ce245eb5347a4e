# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Language modelling: at every position, the word that comes next (Radford et al. 2019).

lm = Task(Config(), classes=(), pools=())
losses, metrics = lm.loss(outputs, {"label": following})      # int32[B, T], negative where nothing is asked
lm.measure(lm.gathered(outputs, windows), None, weights)       # perplexity and share of right words

A label is the word that follows its position, so labels are the text one token early: for a decoder alone its input
without the first token, for an encoder and a decoder what `decoder_input_ids` are one token late. The layer that
predicts, `lm_head`, is the family's own, because it may share the family's word embedding. A run never holds its scores
at all positions at once; see `core.projected`.
"""

# B batch, T time, V words, N examples, R resamples

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tl_jax.core import projected, task
from tl_jax.core.errors import UserError, shorten

# Texts that are tokenised at once: enough for all cores, few enough to hold.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the task: none."""


class Task(task.Task):
    """What the engine asks of a task.

    Args:
      config: the options.
      classes, pools: given for the sake of other tasks; not used.
    """

    outputs = ("accuracy", "words")
    pool = "lm_head"
    metrics = ("loss", "perplexity", "accuracy")
    smaller_is_better = ("loss", "perplexity")

    def __init__(self, config: Config, classes: tuple[str, ...], pools: tuple[str, ...]):
        self.config, self.classes = config, ()

    def stages(self, width: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The stages to append to a backbone: none, the family builds its `lm_head` where `pool` asks for it."""
        return {}

    def arrange(self, model, groups: int) -> None:
        """The family's `lm_head` leaves the factors of its scores, which `loss` multiplies a part at a time."""
        model.lm_head.groups = groups

    def published(self) -> dict[str, object]:
        """What a `config.json` says of this head: nothing."""
        return {}

    def check_labels(self, labels: np.ndarray | None, keys: list[str], where: str) -> None:
        """Nothing to check: texts are their own labels."""

    def windows(self, examples, transform):
        """Texts as inputs without their last token, with the tokens that follow as labels int64[W, T], -1 behind the
        last; long texts in pieces.

        Raises:
          UserError: a text of a single token, after which nothing follows.
        """
        inputs, owners, following, short = [], [], [], []
        for start in range(0, len(examples), _CHUNK):
            positions = range(start, min(start + _CHUNK, len(examples)))
            found = transform.pieces([examples[i]["text"] for i in positions], [examples.keys[i] for i in positions])
            for position, pieces in zip(positions, found):
                # What is left of a long text may be one token, after which nothing follows.
                pieces = [piece for piece in pieces if len(piece["input_ids"]) > 1]
                short += [] if pieces else [examples.keys[position]]
                inputs += [{name: values[:-1] for name, values in piece.items()} for piece in pieces]
                following += [piece["input_ids"][1:] for piece in pieces]
                owners += [position] * len(pieces)
        if short:
            raise UserError("data", f"{shorten(short)} holds a single token", "remove these records")
        labels = np.full((len(inputs), max(map(len, following))), -1, np.int64)
        for row, tokens in zip(labels, following):
            row[: len(tokens)] = tokens
        return examples.windows(inputs.__getitem__, np.array(owners), labels)

    def loss(self, outputs, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean cross-entropy of each example over the positions that count, computed in float32.

        Args:
          outputs: `logits` float[B, T, V], or the `factors` of which they are the product, see `core.projected`.
          batch: `label` int32[B, L] in [0, V), negative where a position does not count; past T none does.

        Returns:
          float32[B], 0 where none counts; {"accuracy": float32[B], the share of right words, "words": float32[B], how
          many count}.
        """
        factors = outputs.get("factors")
        length = (outputs["logits"] if factors is None else factors.hidden).shape[1]
        labels_BT = _of_length(batch["label"], length)
        counts_BT, asked_BT = labels_BT >= 0, jnp.maximum(labels_BT, 0)
        if factors is None:
            losses_BT, best_BT, _ = projected.score(outputs["logits"].astype(jnp.float32), asked_BT)
        else:
            losses_BT, best_BT = projected.cross_entropy(factors, asked_BT)
        right_BT = best_BT == labels_BT
        words_B = counts_BT.sum(axis=1).astype(jnp.float32)

        def mean(values_BT):
            return jnp.sum(values_BT, axis=1, where=counts_BT) / jnp.maximum(words_B, 1)

        return mean(losses_BT), {"accuracy": mean(right_BT.astype(jnp.float32)), "words": words_B}

    def gathered(self, outputs: Mapping[str, np.ndarray], examples) -> dict[str, np.ndarray]:
        """Outputs by text: means over its words, and how many those are."""
        owners, count, words_W = examples.record_of, len(examples.records), outputs["words"].astype(np.float64)
        words_N = np.bincount(owners, words_W, count)
        means = {name: np.bincount(owners, outputs[name] * words_W, count) / words_N for name in ("loss", "accuracy")}
        return {**means, "words": words_N}

    def measure(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray, weights_RN: np.ndarray):
        """Metrics of a whole set, each [R], in which every word weighs the same: perplexity, share of right words.

        Args:
          outputs: of `gathered`.
          weights_RN: how often each text counts; see `core.metrics`.
        """
        words_N = outputs["words"]
        words_R = weights_RN @ words_N
        means = {name: weights_RN @ (outputs[name] * words_N) / words_R for name in ("loss", "accuracy")}
        return {"perplexity": np.exp(means["loss"]), "accuracy": means["accuracy"]}

    def details(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, object]:
        """How many words were predicted."""
        return {"words": int(outputs["words"].sum())}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
        """One row a text: how well it is predicted."""
        columns = zip(np.exp(outputs["loss"]), outputs["accuracy"], outputs["words"])
        return [{"perplexity": float(p), "accuracy": float(a), "words": int(w)} for p, a, w in columns]


def published_classes(published: Mapping[str, Any], folder: pathlib.Path | None) -> tuple[str, ...]:
    """A published head has no classes but the words of its tokenizer."""
    return ()


def _of_length(labels_BL, length: int):
    """int[B, length]: cut, or filled up with -1."""
    more = max(length - labels_BL.shape[1], 0)
    return jnp.pad(labels_BL, [(0, 0), (0, more)], constant_values=-1)[:, :length]
