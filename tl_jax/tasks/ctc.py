# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Speech to text by connectionist temporal classification (Graves et al. 2006): a symbol or a blank for every frame.

ctc = Task(Config(), classes=("<pad>", "|", "a", "b"), pools=("mean",))
losses, metrics = ctc.loss(outputs, {"label": ids})       # ids int[B, L], 0 after the last symbol
ctc.predictions({"logits": logits})                       # [{"text": "a bab"}, ...]

Class 0 is the blank, with which labels are also filled up, and `|` stands between words, as in published wav2vec 2.0.
"""

# B batch, T frames, L symbols, D width, C classes, N examples, R resamples

import dataclasses
import json
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
from tl_jax.nn.functions import dropout

BLANK, SPACE = 0, "|"
# Far below any logit, and finite, so that a product with zero is zero.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
      dropout: of the frames, in training.
    """

    dropout: float = 0.0


class Head(nnx.Linear):
    """A linear layer over every frame; starts from N(0, 0.02²) and zero biases."""

    def __init__(self, width: int, classes: int, dropout: float, *, rngs: nnx.Rngs):
        super().__init__(width, classes, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.dropout = dropout

    def __call__(self, x, context):
        """Named outputs, or `last_hidden_state` alone -> the same with `logits` float32[B, T, C].

        Frames of padding are certain of the blank, which changes neither the loss nor the text, so nobody needs to
        know any more where they begin; `frames` int32[B] counts the others.
        """
        outputs = dict(x) if isinstance(x, Mapping) else {"last_hidden_state": x}
        frames_BTD = dropout(outputs["last_hidden_state"], self.dropout, context.key)
        logits_BTC = super().__call__(frames_BTD).astype(jnp.float32)
        mask_BT = context.batch.get("attention_mask", jnp.ones(logits_BTC.shape[:2], jnp.int32))
        blank_C = jnp.full(logits_BTC.shape[-1], _NEVER).at[BLANK].set(0.0)
        logits_BTC = jnp.where(mask_BT[..., None].astype(bool), logits_BTC, blank_C)
        return {**outputs, "logits": logits_BTC, "frames": mask_BT.sum(axis=1).astype(jnp.int32)}


class Task(task.Task):
    """What the engine asks of a task.

    Args:
      config: the options.
      classes: the blank and the symbols, in the order of the logits.
      pools: of the family; not used.

    Raises:
      UserError: a dropout rate out of range.
    """

    metric = "wer"
    metrics = smaller_is_better = ("wer", "cer", "loss")

    def __init__(self, config: Config, classes: tuple[str, ...], pools: tuple[str, ...]):
        if not 0 <= config.dropout < 1:
            raise UserError("task.options.dropout", f"is {config.dropout}, must be in [0, 1)")
        self.config, self.classes = config, tuple(classes)

    def stages(self, width: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The stage to append to a backbone of this width, under the name that published files give it."""
        return {"lm_head": Head(width, len(self.classes), self.config.dropout, rngs=rngs)}

    def published(self) -> dict[str, object]:
        """What a `config.json` says of this head."""
        names = dict(enumerate(self.classes))
        return {
            "vocab_size": len(names),
            "pad_token_id": BLANK,
            "ctc_zero_infinity": True,
            "id2label": {str(i): name for i, name in names.items()},
            "label2id": {name: i for i, name in names.items()},
        }

    def check_labels(self, labels: np.ndarray | None, keys: list[str], where: str) -> None:
        """Raise UserError unless every label is a text: symbols in range, then nothing but filling."""
        if labels is None or labels.ndim != 2:
            raise UserError(where, "has no transcripts", "name their column in data.options")
        # By membership: a NaN is neither below nor above anything.
        known_N = np.isin(labels, np.arange(len(self.classes))).all(axis=1)
        text_N = (labels[:, 0] != BLANK) & ~((labels[:, :-1] == BLANK) & (labels[:, 1:] != BLANK)).any(axis=1)
        for good_N, what in ((known_N, f"has symbols outside 0 to {len(self.classes) - 1}"), (text_N, "is no text")):
            bad = np.flatnonzero(~good_N)
            if len(bad):
                raise UserError(
                    where, f"{keys[bad[0]]} {what}" + (f", as do {len(bad) - 1} more" if len(bad) > 1 else "")
                )

    def loss(self, outputs, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """-log of the chance of each text over all its alignments, computed in float32.

        Args:
          batch: `label` [B, L] of whole numbers in [0, C), 0 after the last symbol.

        Returns:
          float32[B], 0 where the frames are too few for the text; {"alignable": float32[B]}, 0 there and else 1.
        """
        logits_BTC, labels_BL = outputs["logits"].astype(jnp.float32), batch["label"].astype(jnp.int32)
        filling_BL = labels_BL == BLANK
        # A symbol that follows itself needs a blank between, hence one frame more.
        again_B = jnp.sum((labels_BL[:, 1:] == labels_BL[:, :-1]) & ~filling_BL[:, 1:], axis=1)
        alignable_B = jnp.sum(~filling_BL, axis=1) + again_B <= outputs["frames"]
        no_padding_BT = jnp.zeros(logits_BTC.shape[:2])
        # It picks chances by products with ones and zeros, which TF32 would round.
        with jax.default_matmul_precision("highest"):
            losses_B = optax.ctc_loss(logits_BTC, no_padding_BT, labels_BL, filling_BL.astype(jnp.float32))
        return jnp.where(alignable_B, losses_B, 0.0), {"alignable": alignable_B.astype(jnp.float32)}

    def measure(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray, weights_RN: np.ndarray):
        """Metrics of a whole set, each [R]: edits by words and by characters, as shares of the transcripts' lengths.

        Args:
          outputs: `logits` float32[N, T, C].
          weights_RN: how often each example counts; see `core.metrics`.
        """
        heard, said = self.texts(outputs["logits"]), self.transcripts(labels)
        rates = {"wer": _edits(said, heard, words=True), "cer": _edits(said, heard, words=False)}
        return {
            name: weights_RN @ edits_N4[:, 1:].sum(axis=1) / np.maximum(weights_RN @ edits_N4[:, :3].sum(axis=1), 1)
            for name, edits_N4 in rates.items()
        }

    def details(self, outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, object]:
        """What is no single number: how many words were heard, replaced, missed and made up."""
        edits_4 = _edits(self.transcripts(labels), self.texts(outputs["logits"]), words=True).sum(axis=0)
        return {"words": dict(zip(("right", "replaced", "missed", "made_up"), map(int, edits_4)))}

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
        """One row an example: the text."""
        return [{"text": text} for text in self.texts(outputs["logits"])]

    def texts(self, logits_NTC: np.ndarray) -> list[str]:
        """Greedy decoding: the likeliest class of every frame, runs of one class once, blanks dropped."""
        best_NT = logits_NTC.argmax(axis=2)
        new_NT = np.diff(best_NT, axis=1, prepend=BLANK) != 0
        return [self._text(best_T[new_T & (best_T != BLANK)]) for best_T, new_T in zip(best_NT, new_NT)]

    def transcripts(self, labels_NL: np.ndarray) -> list[str]:
        """The texts that labels stand for."""
        return [self._text(ids_L[ids_L != BLANK]) for ids_L in labels_NL]

    def _text(self, ids: np.ndarray) -> str:
        symbols = "".join(self.classes[int(i)] for i in ids)
        return " ".join(symbols.replace(SPACE, " ").split())


def published_classes(published: Mapping[str, Any], folder: pathlib.Path | None) -> tuple[str, ...]:
    """The symbols of a published head: of `vocab.json`, or of the labels that a run of ours left in `config.json`.

    Raises:
      UserError: a blank that is not symbol 0.
    """
    count = int(published.get("vocab_size", 32))
    symbols = [str(i) for i in range(count)]
    if folder is not None and (folder / "vocab.json").is_file():
        known = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        by_id = {number: symbol for symbol, number in known.items()}
        symbols = [by_id.get(i, str(i)) for i in range(count)]
    elif len(published.get("id2label") or {}) == count:
        symbols = [published["id2label"][str(i)] for i in range(count)]
    if published.get("pad_token_id", BLANK) != BLANK:
        blank = published["pad_token_id"]
        raise UserError("config.json", f"pad_token_id, the blank, is {blank}, only {BLANK} is supported")
    return tuple(symbols)


def _edits(said: list[str], heard: list[str], words: bool) -> np.ndarray:
    """int64[N, 4]: words or characters that are right, replaced, missed, made up, by the fewest edits."""
    import jiwer

    count = jiwer.process_words if words else jiwer.process_characters
    found = [count(one, other) for one, other in zip(said, heard)]
    return np.array([(x.hits, x.substitutions, x.deletions, x.insertions) for x in found], np.int64).reshape(-1, 4)
