# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Random examples in the shapes of a config, so that its step can be measured without its data.

    engine = build(exp, **synthetic.parts(exp, num_classes=2))

Images are as large as the network takes them, sounds have `data.max_length` samples and texts as many random ids, which
need no tokenizer. Nothing is padded.
"""

import numpy as np

from tl_jax import config, inputs, loading
from tl_jax.core.errors import UserError
from tl_jax.data.examples import Examples

_TASKS = ("classification", "language_model")


def parts(exp: config.Experiment, num_classes: int, count: int | None = None) -> dict[str, object]:
    """`data` and `transform` for `engine.build`: `count` examples or one batch of them, drawn by the config's seed, and
    for texts what takes the place of a tokenizer.

    Raises:
      UserError: a task that needs labels of another form, fewer than two classes.
    """
    if exp.task.name not in _TASKS:
        raise UserError("--synthetic", f"makes data for {' and '.join(_TASKS)}, not for {exp.task.name}")
    if num_classes < 2:
        raise UserError("--classes", f"is {num_classes}, must be at least 2")
    checkpoint = loading.checkpoint_of(exp.model)
    kind, rng = inputs.kind_of(checkpoint), np.random.default_rng(exp.seed)
    count, transform = exp.train.batch_size if count is None else count, None
    if kind == "text":
        transform = Tokens(checkpoint.family.INPUTS, checkpoint.config.vocab_size, exp.data.max_length, exp.seed)
        records = [{"text": str(number)} for number in range(count)]
    elif kind == "image":
        spec = inputs.reading(exp, checkpoint)
        shape = spec.height, spec.width, spec.channels
        records = [{"image": rng.integers(0, 256, shape, np.uint8)} for _ in range(count)]
    else:
        rate = inputs.reading(exp, checkpoint).rate
        draw = rng.standard_normal
        records = [{"sound": draw(exp.data.max_length, np.float32), "rate": rate} for _ in range(count)]
    labels = rng.integers(0, num_classes, count)
    if exp.task.options.get("multi_label"):
        labels = rng.integers(0, 2, (count, num_classes)).astype(np.float32)
    classes, keys = [f"class {number}" for number in range(num_classes)], [str(number) for number in range(count)]
    examples = Examples(
        records.__getitem__,
        keys,
        kind=kind,
        classes=classes if exp.task.name == "classification" else (),
        labels=labels if exp.task.name == "classification" else None,
    )
    return {"data": {"train": examples}, "transform": transform}


class Tokens:
    """In place of `data.texts.TextTransform`: the text "7" is the seventh row of random ids.

    Args:
      inputs: what the network takes; of it `input_ids`, `attention_mask` and `token_type_ids` are made here.
      vocab_size: ids are below it.
      length: T, of every text.
    """

    def __init__(self, inputs: tuple[str, ...], vocab_size: int, length: int, seed: int):
        self._inputs, self._vocab_size, self._length, self._seed = inputs, vocab_size, length, seed

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`{"text": str}` -> `{"input_ids": int32[T]}`; a record of ids stays as it is."""
        return record if "input_ids" in record else {"input_ids": self._ids(record["text"], self._length)}

    def lengths(self, examples: Examples) -> np.ndarray:
        """int32[N], T everywhere."""
        return np.full(len(examples), self._length, np.int32)

    def pieces(self, texts: list[str], names: list[str]) -> list[list[dict[str, np.ndarray]]]:
        """Each text as one piece of T + 1 ids, as the last of them is a label only."""
        return [[{"input_ids": self._ids(text, self._length + 1)}] for text in texts]

    def collate(self, examples: list[dict], length: int | None = None) -> dict[str, np.ndarray]:
        """int32[B, T] ids, a mask of ones, types of zeros; with segments no mask."""
        ids = np.stack([example["input_ids"] for example in examples])
        made = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        if "segments" in examples[0]:
            made = {"input_ids": ids, "segments": np.stack([example["segments"] for example in examples])}
        return {name: array for name, array in made.items() if name in self._inputs}

    def _ids(self, text: str, length: int) -> np.ndarray:
        return np.random.default_rng((self._seed, int(text))).integers(0, self._vocab_size, length, np.int32)
