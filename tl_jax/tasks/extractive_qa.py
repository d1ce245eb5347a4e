# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Questions whose answer is a stretch of a given text (Rajpurkar et al. 2016): a score for every token to begin it, and
one to end it.

qa = Task(Config(stride=128), classes=(), pools=("cls",))
windows = qa.windows(examples, transform)                   # pieces of contexts too long for one input
losses, metrics = qa.loss(outputs, {"label": spans})        # int32[B, 2], first and last token
qa.predictions(qa.gathered(outputs, windows))               # [{"answer": "42", ...}, ...]

A piece that lacks the answer, or a question without one, has its first token as answer, as published heads learnt it.
"""

# B batch, T time, W windows, N examples, R resamples

import collections
import dataclasses
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tl_jax.core import task
from tl_jax.core.chain import named
from tl_jax.core.errors import UserError
from tl_jax.nn.functions import dropout

# Pairs that are tokenised at once: enough for all cores, few enough to hold.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
      stride: tokens that neighbouring pieces of one context share.
      n_best: how many first and how many last tokens of a piece are tried.
      max_answer_length: tokens of an answer, at most.
      no_answer: a question may have none; the empty answer then competes with the others by the score that the first
        token has in the piece where it is lowest.
      dropout: of the hidden states, in training.
    """

    stride: int = 128
    n_best: int = 20
    max_answer_length: int = 30
    no_answer: bool = False
    dropout: float = 0.0


class Head(nnx.Linear):
    """Two scores for every token; starts from N(0, 0.02²) and zero biases."""

    def __init__(self, width: int, rate: float, *, rngs: nnx.Rngs):
        super().__init__(width, 2, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.dropout = rate

    def __call__(self, x, context):
        """Named outputs, or `last_hidden_state` alone -> the same with `start_logits`, `end_logits` float32[B, T], and
        `counts` bool[B, T], which of them are no padding."""
        outputs = named(x)
        hidden_BTD = dropout(outputs["last_hidden_state"], self.dropout, context.key)
        scores_BT2 = super().__call__(hidden_BTD).astype(jnp.float32)
        mask_BT = context.batch.get("attention_mask", jnp.ones(scores_BT2.shape[:2], bool)).astype(bool)
        return {**outputs, "start_logits": scores_BT2[..., 0], "end_logits": scores_BT2[..., 1], "counts": mask_BT}


class Task(task.Task):
    """What the engine asks of a task.

    Args:
      config: the options.
      classes: none; given for the sake of other tasks, as is `pools`.

    Raises:
      UserError: an option out of range.
    """

    outputs = ("start_logits", "end_logits")
    metric = "f1"
    metrics = ("exact_match", "f1", "loss")

    def __init__(self, config: Config, classes: tuple[str, ...], pools: tuple[str, ...]):
        limits = {"stride": (0, np.inf), "n_best": (1, np.inf), "max_answer_length": (1, np.inf), "dropout": (0, 1)}
        wrong = [
            f"{name} is {getattr(config, name)}, must be in [{low}, {high})"
            for name, (low, high) in limits.items()
            if not low <= getattr(config, name) < high
        ]
        if wrong:
            raise UserError("task.options", "; ".join(wrong))
        self.config, self.classes = config, ()

    def stages(self, width: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The stage to append to a backbone of this width, under the name that published files give it."""
        return {"qa_outputs": Head(width, self.config.dropout, rngs=rngs)}

    def published(self) -> dict[str, object]:
        """What a `config.json` says of this head: nothing."""
        return {}

    def check_labels(self, labels: np.ndarray | None, keys: list[str], where: str) -> None:
        """Raise UserError unless every label is a span, or none where questions may have no answer."""
        if labels is None or labels.ndim != 2 or labels.dtype.kind != "i":
            raise UserError(where, "has no answers", "take a source of questions, such as data.source=squad")
        bad = np.flatnonzero(labels[:, 0] >= labels[:, 1])
        if len(bad) and not self.config.no_answer:
            raise UserError(
                where,
                f"{keys[bad[0]]} has no answer" + (f", as have {len(bad) - 1} more" if len(bad) > 1 else ""),
                "set task.options.no_answer=true",
            )

    def windows(self, examples, transform):
        """Question and context as inputs: records `{"text": question, "context": str}` with labels int64[N, 2], where
        the answer begins and ends in characters -> pieces with labels int32[W, 2], its first and last token."""
        pieces, owners, spans = [], [], []
        for start in range(0, len(examples), _CHUNK):
            positions = range(start, min(start + _CHUNK, len(examples)))
            records = [examples[i] for i in positions]
            found = transform.windows(
                [record["text"] for record in records],
                [record["context"] for record in records],
                self.config.stride,
                [examples.keys[i] for i in positions],
            )
            for position, parts in zip(positions, found):
                for arrays, offsets in parts:
                    pieces.append({**arrays, "offsets": offsets})
                    owners.append(position)
                    if examples.labels is not None:
                        spans.append(_tokens(offsets, *examples.labels[position]))
        labels = np.array(spans, np.int64) if spans else None
        return examples.windows(pieces.__getitem__, np.array(owners), labels)

    def loss(self, outputs, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean of the cross-entropies of the first and of the last token among all tokens of a piece.

        Args:
          batch: `label` int32[B, 2].

        Returns:
          float32[B]; {"exact": float32[B]}, whether both are found.
        """
        losses, right = [], []
        for number, name in enumerate(self.outputs):
            logits_BT = jnp.where(outputs["counts"], outputs[name].astype(jnp.float32), jnp.finfo(jnp.float32).min)
            losses.append(optax.softmax_cross_entropy_with_integer_labels(logits_BT, batch["label"][:, number]))
            right.append(logits_BT.argmax(axis=1) == batch["label"][:, number])
        return (losses[0] + losses[1]) / 2, {"exact": (right[0] & right[1]).astype(jnp.float32)}

    def gathered(self, outputs: Mapping[str, np.ndarray], examples) -> dict[str, np.ndarray]:
        """Outputs by question, from those of its pieces.

        Returns:
          `answers` object[N], the best of each question's, best first, as `nbest` gives them; `known` object[N], the
          right ones where records have them; `loss` float32[N], the mean over pieces, where there are labels.
        """
        records, owners = examples.records, examples.record_of
        found: list[list[tuple[float, int, int]]] = [[] for _ in range(len(records))]
        nothing = np.full(len(records), np.inf)
        for window, owner in enumerate(owners.tolist()):
            start, end = (outputs[name][window] for name in self.outputs)
            found[owner] += self._spans(start, end, examples[window]["offsets"])
            nothing[owner] = min(nothing[owner], start[0] + end[0])
        answers, known = np.empty(len(records), object), np.empty(len(records), object)
        for i in range(len(records)):
            record = records[i]
            spans = found[i] + [(float(nothing[i]), 0, 0)] * self.config.no_answer
            best = sorted(spans, key=lambda span: -span[0])[: self.config.n_best]
            answers[i] = [(score, record["context"][first:last], first) for score, first, last in best]
            known[i] = record.get("answers")
        gathered = {"answers": answers, "known": known}
        if "loss" in outputs:
            gathered["loss"] = np.bincount(owners, outputs["loss"], len(records)) / np.bincount(owners)
        return gathered

    def _spans(self, start_T: np.ndarray, end_T: np.ndarray, offsets_T2: np.ndarray) -> list[tuple[float, int, int]]:
        """(score, first character, last character + 1) of this piece's candidates; the padding has no offsets."""
        tokens = np.flatnonzero(offsets_T2[:, 0] >= 0)
        firsts = tokens[np.argsort(-start_T[tokens], kind="stable")[: self.config.n_best]]
        lasts = tokens[np.argsort(-end_T[tokens], kind="stable")[: self.config.n_best]]
        length = lasts[None, :] - firsts[:, None] + 1
        f, l = np.nonzero((length >= 1) & (length <= self.config.max_answer_length))  # noqa: E741
        scores = start_T[firsts[f]] + end_T[lasts[l]]
        return list(zip(scores.tolist(), offsets_T2[firsts[f], 0].tolist(), offsets_T2[lasts[l], 1].tolist()))

    def measure(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray, weights_RN: np.ndarray):
        """Metrics of a whole set, each [R], as the published script of SQuAD defines them, as shares of 1.

        Args:
          outputs: of `gathered`.
          weights_RN: how often each question counts; see `core.metrics`.
        """
        said = [best[0][1] for best in outputs["answers"]]
        exact_N = np.array([exact_match(text, known) for text, known in zip(said, outputs["known"])])
        f1_N = np.array([f1(text, known) for text, known in zip(said, outputs["known"])])
        total_R = weights_RN.sum(axis=1)
        return {"exact_match": weights_RN @ exact_N / total_R, "f1": weights_RN @ f1_N / total_R}

    def details(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, object]:
        """What is no single number: how many questions have no answer, and how many were given none."""
        unanswered = sum(not best[0][1] for best in outputs["answers"])
        return {"without_answer": int((labels[:, 0] < 0).sum()), "answered_by_nothing": int(unanswered)}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
        """One row a question: the answer, its share of the chance among the n best, the character it begins at, and
        the second best."""
        rows = []
        for best in outputs["answers"]:
            scores = np.array([score for score, _, _ in best])
            chances = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            other = next((text for _, text, _ in best if text != best[0][1]), "")
            row = {"answer": best[0][1], "p(answer)": float(chances[0]), "start": best[0][2], "second": other}
            rows.append(row)
        return rows


def published_classes(published: Mapping[str, Any], folder: pathlib.Path | None) -> tuple[str, ...]:
    """None."""
    return ()


def normalised(answer: str) -> str:
    """Lower case, without punctuation and articles, words one space apart."""
    plain = "".join(symbol for symbol in answer.lower() if symbol not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, known: Sequence[str]) -> float:
    """1 if it is one of those known, normalised; no known answer is the empty one."""
    return float(normalised(answer) in {normalised(text) for text in known or [""]})


def f1(answer: str, known: Sequence[str]) -> float:
    """The best F1 over those known, of words as multisets; of two texts one of which has no word, whether both are."""
    return max(_f1(normalised(answer).split(), normalised(text).split()) for text in known or [""])


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    shared = sum((collections.Counter(said) & collections.Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


def _tokens(offsets_T2: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """The first and the last token of characters [first, last), or twice the first of all where they are not here."""
    tokens = np.flatnonzero(offsets_T2[:, 0] >= 0)
    begins, ends = offsets_T2[tokens].T
    if first < 0 or not len(tokens) or first < begins[0] or last > ends[-1]:
        return 0, 0
    return int(tokens[np.flatnonzero(begins <= first)[-1]]), int(tokens[np.flatnonzero(ends >= last)[0]])
