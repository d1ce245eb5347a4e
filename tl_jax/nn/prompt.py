# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning: trained rows in front of every text, before a network that stays as it is (Lester et al. 2021).

    install(model, 20, rngs)                  # stem/word/prompt/rows float32[20, width]
    model({"input_ids": ids})                 # as if every text began with 20 words more

The network makes room for the rows where it reads its batch, so positions, masks, segments and limits of length count
them as words; a head that speaks for every position is handed those of the text alone. Knows the table `stem/word` and
the names of such heads, no families.
"""

# B batch, P rows of the prompt, T time, D width

import functools
import types
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core.chain import Backbone
from tl_jax.core.errors import UserError
from tl_jax.nn.adapters import adapted
from tl_jax.nn.embed import Embed

# Heads that speak for every position, see `core.task`.
_BY_TOKEN = ("lm_head", "qa_outputs")
# What the batch says of the prompt's positions: they count, and are of the first segment.
_FIELDS = {"attention_mask": 1, "token_type_ids": 0}


class Prompt(nnx.Module):
    """The rows, from N(0, 1) as PEFT draws them; an adapter of the table of words, see `nn.adapters`."""

    name = "prompt"

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        self.rows = nnx.Param(jax.random.normal(rngs.params(), (count, width)))

    @property
    def count(self) -> int:
        """How many rows."""
        return self.rows.shape[0]

    def __call__(self, layer: nnx.Module, run: Callable[[jax.Array], jax.Array], ids_BT: jax.Array) -> jax.Array:
        """int[B, P + T], of which the first P are not read -> float[B, P + T, D] in the table's dtype."""
        words_BTD = run(ids_BT[:, self.count :])
        rows_PD = self.rows[...].astype(words_BTD.dtype)
        rows_BPD = jnp.broadcast_to(rows_PD, (len(words_BTD), *rows_PD.shape))
        return jnp.concatenate([rows_BPD, words_BTD], axis=1)


def install(model: Backbone, count: int, rngs: nnx.Rngs, where: str = "plan.prompt") -> None:
    """Put a prompt of so many rows before every text, in place.

    Args:
      where: what asks for it.

    Raises:
      UserError: a network that does not read one text word by word.
    """
    word = getattr(getattr(model, "stem", None), "word", None)
    if type(word) is not Embed or len(model.chains) > 1:
        text = "a prompt stands before the words of a text that one tower reads, and this network reads something else"
        raise UserError(where, text, "leave it out")
    word.prompt = Prompt(count, word.embedding.shape[-1], rngs=rngs)
    word.__class__ = adapted(Embed, Prompt.name)
    model.__class__ = _with_room(type(model))
    for name in _BY_TOKEN:
        if hasattr(model, name):
            head = getattr(model, name)
            head.skipped = count
            head.__class__ = _of_text(type(head))


def of(model: Backbone) -> Prompt | None:
    """The prompt of a network that has one."""
    return getattr(getattr(getattr(model, "stem", None), "word", None), Prompt.name, None)


@functools.cache
def _with_room(base: type) -> type:
    """The class of a network of class `base` whose texts begin with room for its prompt; one class for all of them, as
    two networks are the same program only if their classes are."""

    def begin(self, chain, batch, done):
        count = of(self).count
        if batch.get("segments") is not None:
            raise UserError("segments", "put several texts in a row, and a prompt stands before one", "leave them out")
        # Some families count positions by what is no padding.
        fields = {"input_ids": int(getattr(self.config, "pad_token_id", None) == 0), **_FIELDS}
        wider = {
            name: jnp.pad(batch[name], ((0, 0), (count, 0)), constant_values=value)
            for name, value in fields.items()
            if batch.get(name) is not None
        }
        try:
            return base.begin(self, chain, {**batch, **wider}, done)
        except UserError as error:
            raise UserError(error.where, f"with a prompt of {count} {error.what}", error.do) from error

    return types.new_class(f"Prompted{base.__name__}", (base,), {}, lambda names: names.update(begin=begin))


@functools.cache
def _of_text(base: type) -> type:
    """The class of a head of class `base` that is handed the positions behind the prompt alone."""

    def call(self, x, context):
        batch = dict(context.batch)
        if batch.get("attention_mask") is not None:
            batch["attention_mask"] = batch["attention_mask"][:, self.skipped :]
        if isinstance(x, Mapping):
            x = {**x, "last_hidden_state": x["last_hidden_state"][:, self.skipped :]}
        else:
            x = x[:, self.skipped :]
        return base.__call__(self, x, context._replace(batch=batch))

    return types.new_class(f"Skipping{base.__name__}", (base,), {}, lambda names: names.update(__call__=call))
