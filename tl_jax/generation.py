# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Networks that write: the prompt once, then word by word with a memory.

    writer = Writer(model, chains, family.INPUTS)
    words_BN = writer(params, {"input_ids": ids}, Options(max_new_tokens=20, eos=(2,)))

Every chain but the last runs once, the last one's stages through `nn.memory`; which word comes next is decided by
`decoding`. Options that a checkpoint's files name are read by `defaults`.
"""

# B rows, P tokens of the prompt, N words to write, T tokens, D width

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import decoding
from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Backbone, Carry, Chains
from tl_jax.core.errors import UserError
from tl_jax.decoding import Options
from tl_jax.nn import memory as memories
from tl_jax.nn import prompt
from tl_jax.nn.memory import Memory
from tl_jax.nn.words import Words

# Published options that change greedy and beam search in a way not built here, with the values that change nothing.
_REFUSED = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "num_beam_groups": (1,),
    "early_stopping": (False, True),
}


class Writer:
    """A network with an `lm_head`, compiled for writing.

    Args:
      model: may be abstract: only its `begin` is used.
      inputs: the family's INPUTS.
    """

    def __init__(self, model: Backbone, chains: Chains, inputs: Sequence[str]):
        self._model, self._inputs = model, inputs
        *self._before, (self._last, (*self._stages, self._head)) = chains.items()
        self.reads = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
        self._mask = self.reads.replace("input_ids", "attention_mask")
        self._read = jax.jit(self._prompt, static_argnames="columns")
        self._write = jax.jit(self._rest, static_argnames="options")

    def __call__(self, params, batch: Mapping[str, Any], options: Options) -> jax.Array:
        """What follows the prompt in `batch[self.reads]` int[B, P].

        Returns:
          int32[B, N] with N up to `options.max_new_tokens`; `options.pad` behind the word that ends a text.

        Raises:
          UserError: padding that is not on the right, several texts in a row, more words than there are positions.
        """
        batch = {name: np.asarray(batch[name]) for name in self._inputs if name in batch}
        if "segments" in batch:
            raise UserError("segments", "put several texts in a row, of which one can go on", "give one text a row")
        prompt_BP = batch.pop(self.reads).astype(np.int32)
        counts_BP = batch.pop(self._mask, np.ones_like(prompt_BP)).astype(bool)
        if not counts_BP[:, 0].all() or (~counts_BP[:, :-1] & counts_BP[:, 1:]).any():
            raise UserError(self._mask, "has gaps or an empty prompt", "pad prompts on the right")
        batch = {name: jnp.asarray(value) for name, value in batch.items()}
        columns = prompt_BP.shape[1] + options.max_new_tokens
        logits_BV, memory, done = self._read(params, batch, prompt_BP, counts_BP, columns=columns)
        words_BN, count = self._write(params, batch, done, memory, logits_BV, options=options)
        return words_BN[:, : int(count)]

    def _prompt(self, params, batch, prompt_BP, counts_BP, columns: int):
        """(scores of the word after each row's last token, the memory, outputs of the chains before)."""
        done: dict[str, Any] = {}
        for name, stages in self._before:
            carry = self._model.begin(name, {**batch, self.reads: prompt_BP}, done)
            done[name] = chain.run_stages(stages, params, carry, lambda _: EVAL)[0].x
        rows = len(prompt_BP)
        try:
            # The family says itself how many tokens it takes; what enters is not used.
            self._begin(batch, jnp.zeros((rows, columns), jnp.int32), done)
        except UserError as error:
            text = f"with them {error.where} {error.what}"
            raise UserError("max_new_tokens", text, "ask for fewer, or shorten the prompt") from error
        carry, memory = self._begin(batch, prompt_BP, done), memories.empty(rows, columns)
        x_BPD, memory = memories.run(self._stages, params, carry, memory, counts_BP)
        last_B11 = (counts_BP.sum(axis=1) - 1)[:, None, None]
        return self._scores(params, carry, jnp.take_along_axis(x_BPD, last_B11, axis=1)), memory, done

    def _rest(self, params, batch, done, memory: Memory, logits_BV, options: Options):
        """What `decoding` writes."""
        beams = options.num_beams
        batch, done = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), (batch, done))
        step = functools.partial(self.step, params, batch, done)
        search = decoding.greedy if beams == 1 else decoding.beam_search
        return search(step, memory, logits_BV, options)

    def step(self, params, batch, done, memory: Memory, words_B) -> tuple[jax.Array, Memory]:
        """One word more in every row: scores of the next, float32[B, V], and the memory with it."""
        carry = self._begin(batch, words_B[:, None], done)
        x_B1D, memory = memories.run(self._stages, params, carry, memory, jnp.ones((len(words_B), 1), bool))
        return self._scores(params, carry, x_B1D), memory

    def _begin(self, batch, ids_BT, done) -> Carry:
        return self._model.begin(self._last, {**batch, self.reads: ids_BT}, done)

    def _scores(self, params, carry: Carry, x_B1D) -> jax.Array:
        carry, _ = chain.run_stage(self._head, params, carry._replace(x=x_B1D), EVAL, None)
        return carry.x["logits"][:, 0]


def writer(model: Backbone, chains: Chains, inputs: Sequence[str]) -> Writer:
    """For a network that can write.

    Raises:
      UserError: it has no layer that predicts words, or it has a prompt.
    """
    if not isinstance(getattr(model, "lm_head", None), Words):
        text = "this network has no layer that predicts words"
        raise UserError("generate", text, "load a checkpoint whose architecture has one, such as GPT2LMHeadModel")
    if prompt.of(model) is not None:
        text = "this network has a tuned prompt, and writing behind one is not built"
        raise UserError("generate", text, "save it with tl_jax.save_adapter, and let PEFT write")
    return Writer(model, chains, inputs)


def prompted(batch: Mapping[str, Any], reads: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with a prompt in `reads`: where a decoder has none, the word that begins every text.

    Raises:
      UserError: no prompt, and no such word.
    """
    if reads in batch:
        return dict(batch)
    starts = (published.get(name) for name in ("decoder_start_token_id", "bos_token_id"))
    start = next((token for token in starts if token is not None), None)
    if reads == "input_ids" or start is None:
        raise UserError("batch", f"has no {reads}, there are {', '.join(sorted(batch))}")
    return {**batch, reads: np.full((len(next(iter(batch.values()))), 1), start)}


def defaults(config: Mapping[str, Any], folder: pathlib.Path | None) -> dict[str, Any]:
    """What the checkpoint's files say about writing: `generation_config.json` over `config.json`."""
    file = None if folder is None else (folder if folder.is_dir() else folder.parent) / "generation_config.json"
    if file is None or not file.is_file():
        return dict(config)
    try:
        return {**config, **json.loads(file.read_text())}
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(str(file), f"no JSON object ({error})", "download it again") from error


def options_from(published: Mapping[str, Any], max_new_tokens: int) -> Options:
    """Options under their published names.

    Raises:
      UserError: one of the wrong size, or one that is not built here.
    """

    def get(name, default):
        return default if published.get(name) is None else published[name]

    def tokens(name) -> tuple[int, ...]:
        found = get(name, ())
        return (found,) if isinstance(found, int) else tuple(found)

    refused = [
        f"{name} is {published[name]!r}"
        for name, harmless in _REFUSED.items()
        if published.get(name) is not None and published[name] not in harmless
    ]
    if refused:
        text = f"{'; '.join(refused)}, which is not supported"
        raise UserError("generate", text, "take it out of generation_config.json")
    eos = tokens("eos_token_id")
    options = Options(
        max_new_tokens=max_new_tokens,
        num_beams=get("num_beams", 1),
        length_penalty=float(get("length_penalty", 1.0)),
        early_stopping=get("early_stopping", False),
        eos=eos,
        pad=get("pad_token_id", eos[0] if eos else 0),
        suppress=tokens("suppress_tokens"),
        begin_suppress=tokens("begin_suppress_tokens"),
    )
    for name in ("max_new_tokens", "num_beams"):
        if getattr(options, name) < 1:
            raise UserError(name, f"is {getattr(options, name)}, must be at least 1")
    return options
