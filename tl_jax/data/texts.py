# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Texts as token ids, by the tokenizer that the checkpoint was trained with.

    transform = TextTransform(checkpoint, max_length=128, inputs=("input_ids", "attention_mask"))
    batch = transform.collate([transform({"text": "hello world"})], length=32)

Ids equal those of transformers; padding is on the right and masked. Knows tokenizers, not models.
"""

import pathlib

import numpy as np

from tl_jax.core.errors import UserError, shorten
from tl_jax.data.examples import Examples
from tl_jax.data.vocabulary import read_tokenizer

# Enough to keep all cores busy, few enough that the encodings in flight stay small.
_CHUNK = 2048
_MADE = ("input_ids", "attention_mask", "token_type_ids")


class TextTransform:
    """Records with a text -> int32 ids.

    Args:
      checkpoint: the folder with the tokenizer's files; see `read_tokenizer`.
      max_length: tokens at most, special ones included; longer texts are cut there. The truncation and padding that
        the file itself sets are not used.
      inputs: what the network takes; of it `input_ids`, `attention_mask` and `token_type_ids` are made here.
      vocab_size: rows of the embedding; an id beyond them is an error. None leaves ids unchecked.

    Raises:
      UserError: no tokenizer, or one that cannot be read.
    """

    def __init__(
        self, checkpoint: pathlib.Path, max_length: int, inputs: tuple[str, ...], vocab_size: int | None = None
    ):
        self._tokenizer = read_tokenizer(checkpoint)
        pad = self._tokenizer.padding["pad_id"] if self._tokenizer.padding else 0
        # Masked positions may hold any id that has an embedding.
        self._pad = pad if vocab_size is None or pad < vocab_size else 0
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self._max_length = max_length
        self._where, self._vocab_size = f"the tokenizer of {checkpoint}", vocab_size
        self._inputs = tuple(name for name in inputs if name in _MADE)
        self._known: dict[str, dict[str, np.ndarray]] = {}

    @property
    def identity(self) -> str:
        """What the arrays depend on beside the record, the tokenizer among it; see `fingerprint`."""
        return repr((self._tokenizer.to_str(), self._inputs, self._pad))

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`{"text": str}` -> `{"input_ids": int32[t]}`, with `token_type_ids` int32[t] where the network takes them;
        1 <= t <= max_length. Nothing is random. A record of arrays, as `windows` makes them, stays as it is.

        Raises:
          UserError: an empty text, one that is not Unicode (a lone surrogate), an id beyond the vocabulary.
        """
        if "input_ids" in record:
            return record
        text = record["text"]
        if text in self._known:
            return self._known[text]
        wrong = _wrong(text)
        if wrong:
            raise UserError(repr(text[:40]), wrong, "mend or remove the record")
        return self._arrays(self._tokenizer.encode(text))

    def lengths(self, examples: Examples) -> np.ndarray:
        """int32[N], tokens of every example. What is tokenised here is not tokenised again when a batch is made.

        Raises:
          UserError: as a call does, naming every such record.
        """
        lengths = np.zeros(len(examples), np.int32)
        mistakes = []
        for start in range(0, len(examples), _CHUNK):
            positions = range(start, min(start + _CHUNK, len(examples)))
            records = [examples[i] for i in positions]
            if "input_ids" in records[0]:
                lengths[positions] = [len(record["input_ids"]) for record in records]
                continue
            texts = [record["text"] for record in records]
            wrong = [f"{examples.keys[i]} {what}" for i, text in zip(positions, texts) if (what := _wrong(text))]
            mistakes += wrong
            if wrong:
                continue
            for i, text, encoding in zip(positions, texts, self._tokenizer.encode_batch(texts)):
                self._known[text] = self._arrays(encoding)
                lengths[i] = len(self._known[text]["input_ids"])
        if mistakes:
            raise UserError("data", shorten(mistakes), "mend or remove these records")
        return lengths

    def pieces(self, texts: list[str], names: list[str]) -> list[list[dict[str, np.ndarray]]]:
        """Each text as one input or, where it is too long, as several that follow each other; arrays as of a call.

        Raises:
          UserError: as a call does, naming every such text by `names`.
        """
        mistakes = [f"{name} {what}" for name, text in zip(names, texts) if (what := _wrong(text))]
        if mistakes:
            raise UserError("data", shorten(mistakes), "mend or remove these records")
        found = self._tokenizer.encode_batch(texts)
        return [[self._arrays(piece) for piece in (encoding, *encoding.overflowing)] for encoding in found]

    def windows(self, firsts: list[str], seconds: list[str], stride: int, names: list[str]):
        """Pairs of texts as inputs, each second text in as many pieces as it takes.

        Args:
          stride: tokens of the second text that neighbouring pieces share.
          names: of the pairs, for errors.

        Returns:
          For each pair a list of pieces `(arrays as of a call, offsets int32[t, 2])`: where each token begins and ends
          in the second text, in characters; -1 for tokens that are not of it.

        Raises:
          UserError: as a call does, or a first text that leaves no room; names every such pair.
        """
        import tokenizers

        special = self._tokenizer.num_special_tokens_to_add(True)
        firsts_alone = self._tokenizer.encode_batch(firsts, add_special_tokens=False)
        mistakes = []
        for name, first, second, alone in zip(names, firsts, seconds, firsts_alone):
            if wrong := _wrong(first) or _wrong(second):
                mistakes.append(f"{name} {wrong}")
            elif len(alone) + special + stride >= self._max_length:
                room = f"{self._max_length} with pieces that share {stride}"
                mistakes.append(f"{name} begins with {len(alone)} tokens, which leaves no room within {room}")
        if mistakes:
            raise UserError("data", shorten(mistakes), "mend these records, or raise data.max_length")
        # A tokenizer of its own, as how it cuts is its state.
        pairs = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        pairs.enable_truncation(self._max_length, stride=stride, strategy="only_second")
        found = []
        for encoding in pairs.encode_batch(list(zip(firsts, seconds))):
            pieces = []
            for piece in (encoding, *encoding.overflowing):
                of_second = np.array([sequence == 1 for sequence in piece.sequence_ids])
                offsets = np.where(of_second[:, None], np.array(piece.offsets, np.int32), np.int32(-1))
                pieces.append((self._arrays(piece), offsets))
            found.append(pieces)
        return found

    def collate(self, examples: list[dict], length: int | None = None) -> dict[str, np.ndarray]:
        """The network's inputs as int32[B, length]: ids, ones where there is a token, types; zeros and the padding id
        elsewhere. `length` is the longest of them when None, and must not be shorter. Rows of several texts, see
        `data.packing`, bring `segments` in the place of the mask."""
        counts = np.array([len(example["input_ids"]) for example in examples])
        length = length or int(counts.max())
        assert counts.max() <= length, (counts.max(), length)
        batch = {}
        for name in ("input_ids", "segments") if "segments" in examples[0] else self._inputs:
            batch[name] = np.full((len(examples), length), self._pad if name == "input_ids" else 0, np.int32)
            for row, (example, count) in enumerate(zip(examples, counts)):
                batch[name][row, :count] = 1 if name == "attention_mask" else example[name]
        return batch

    def _arrays(self, encoding) -> dict[str, np.ndarray]:
        ids = np.array(encoding.ids, np.int32)
        if not len(ids):
            raise UserError(self._where, "makes no token of a text", "remove texts of invisible characters only")
        if self._vocab_size is not None and ids.max() >= self._vocab_size:
            raise UserError(
                self._where,
                f"gives id {ids.max()} ({self._tokenizer.id_to_token(int(ids.max()))!r}), the network has "
                f"{self._vocab_size} embeddings",
                "use the tokenizer that belongs to the checkpoint",
            )
        arrays = {"input_ids": ids}
        if "token_type_ids" in self._inputs:
            arrays["token_type_ids"] = np.array(encoding.type_ids, np.int32)
        return arrays


def _wrong(text: str) -> str:
    if not text.strip():
        return "is empty"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"is not Unicode: a lone surrogate at character {error.start}"
    return ""
