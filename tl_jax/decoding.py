# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From scores for the next word to texts: greedy, and by beams, word for word as `transformers` has them.

    words_BN, count = greedy(step, memory, logits_BV, Options(max_new_tokens=20, eos=(2,), pad=0))

`step(memory, words_B) -> (logits_BV, memory)` is pure: it adds one word to every row and scores those that may follow.
Scores after the prompt come with the call, the rest is one `lax.while_loop` over arrays of fixed sizes. Knows no
family: a memory is whatever `step` takes.
"""

# B texts, K beams, C candidates, N words to write, V words there are

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Below any sum of log chances; finite, as the reference has it.
_WORST = -1.0e9


@dataclasses.dataclass(frozen=True)
class Options:
    """How to write; static, so that other options are another program.

    Attributes:
      max_new_tokens: words at most.
      num_beams: texts that are followed at once; 1 is greedy.
      length_penalty: the power of a text's length by which its log chance is divided; above 0 favours long ones.
      early_stopping: stop at `num_beams` whole texts, not only when no better one is likely.
      eos: words that end a text.
      pad: what follows them.
      suppress, begin_suppress: words that are never written, and never first.
    """

    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    eos: tuple[int, ...] = ()
    pad: int = 0
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()

    def allowed(self, scores, first: bool):
        """float[..., V] with -inf at the words that may not stand here."""
        banned = (*self.suppress, *(self.begin_suppress if first else ()))
        return scores.at[..., jnp.array(banned)].set(-jnp.inf) if banned else scores

    def ends(self, words):
        """bool, of the shape of `words`: whether it ends a text."""
        return jnp.isin(words, jnp.array(self.eos, jnp.int32))


Step = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


def greedy(step: Step, memory, logits_BV, options: Options) -> tuple[jax.Array, jax.Array]:
    """The likeliest word each time.

    Returns:
      int32[B, N], filled up with `pad`, and int32[], how many words the longest text has, its last included.
    """
    rows = logits_BV.shape[0]

    def write(count, words_BN, done_B, logits_BV, first):
        words_B = options.allowed(logits_BV, first).argmax(axis=1).astype(jnp.int32)
        words_B = jnp.where(done_B, options.pad, words_B)
        words_BN = jax.lax.dynamic_update_slice(words_BN, words_B[:, None], (0, count))
        return count + 1, words_BN, done_B | options.ends(words_B), words_B

    def unfinished(state):
        count, _, done_B, *_ = state
        return (count < options.max_new_tokens) & ~done_B.all()

    def body(state):
        count, words_BN, done_B, words_B, memory = state
        logits_BV, memory = step(memory, words_B)
        return *write(count, words_BN, done_B, logits_BV, False), memory

    words_BN = jnp.full((rows, options.max_new_tokens), options.pad, jnp.int32)
    state = write(jnp.int32(0), words_BN, jnp.zeros(rows, bool), logits_BV, True)
    count, words_BN, *_ = jax.lax.while_loop(unfinished, body, (*state, memory))
    return words_BN, count


class Beams(NamedTuple):
    """The state of a search: K texts that go on, and the K best that are whole.

    Attributes:
      count: int32[], words written.
      words_BKN, scores_BK: of those that go on, best first; scores are log chances.
      parents_BK: which of the previous beams each continues.
      whole_BKN, whole_scores_BK, whole_lengths_BK, is_whole_BK: of the whole ones, best first; scores with the penalty.
      open_B: whether a better whole text is likely still.
      at_end: bool[], whether all candidates of the last round ended.
    """

    count: jax.Array
    words_BKN: jax.Array
    scores_BK: jax.Array
    parents_BK: jax.Array
    whole_BKN: jax.Array
    whole_scores_BK: jax.Array
    whole_lengths_BK: jax.Array
    is_whole_BK: jax.Array
    open_B: jax.Array
    at_end: jax.Array


def beam_search(step: Step, memory, logits_BV, options: Options) -> tuple[jax.Array, jax.Array]:
    """The best of the texts that K beams find.

    Args:
      step: for B * K rows, those of one text side by side.
      memory: of the prompt, for B rows; its methods `repeated` and `reordered` make it that of beams.

    Returns:
      As `greedy`.
    """
    beams, rows = options.num_beams, logits_BV.shape[0]
    offset_B1 = beams * jnp.arange(rows)[:, None]

    def unfinished(state):
        found, _ = state
        enough = found.is_whole_BK.all() & options.early_stopping
        return found.open_B.any() & ~enough & ~found.at_end

    def body(state):
        found, memory = state
        # The first words were all written by copies of one row, so their parents' places do not matter.
        memory = memory.reordered((offset_B1 + found.parents_BK).reshape(-1))
        last_BK = jax.lax.dynamic_index_in_dim(found.words_BKN, found.count - 1, axis=2, keepdims=False)
        logits, memory = step(memory, last_BK.reshape(-1))
        return _round(found, logits.reshape(rows, beams, -1), options, False), memory

    found = _round(_begin(rows, options), jnp.repeat(logits_BV[:, None], beams, axis=1), options, True)
    found, _ = jax.lax.while_loop(unfinished, body, (found, memory.repeated(beams)))
    return found.whole_BKN[:, 0], found.whole_lengths_BK[:, 0].max()


def _begin(rows: int, options: Options) -> Beams:
    beams = options.num_beams
    words_BKN = jnp.full((rows, beams, options.max_new_tokens), options.pad, jnp.int32)
    none_BK = jnp.zeros((rows, beams), jnp.int32)
    worst_BK = jnp.full((rows, beams), _WORST)
    # All beams are the same at first, so that only one of them may be continued.
    scores_BK = worst_BK.at[:, 0].set(0.0)
    whole = (words_BKN, worst_BK, none_BK, none_BK.astype(bool))
    return Beams(jnp.int32(0), words_BKN, scores_BK, none_BK, *whole, jnp.ones(rows, bool), jnp.array(False))


def _round(old: Beams, logits_BKV, options: Options, first: bool) -> Beams:
    """One word more in every beam."""
    rows, beams, vocabulary = logits_BKV.shape
    count = old.count + 1
    scores_BKV = options.allowed(jax.nn.log_softmax(logits_BKV), first) + old.scores_BK[..., None]
    # Enough that `num_beams` remain when all the others end.
    candidates = beams * max(2, 1 + len(options.eos))
    scores_BC, places_BC = jax.lax.top_k(scores_BKV.reshape(rows, -1), candidates)
    parents_BC, last_BC = places_BC // vocabulary, (places_BC % vocabulary).astype(jnp.int32)
    words_BCN = jnp.take_along_axis(old.words_BKN, parents_BC[..., None], axis=1)
    words_BCN = jax.lax.dynamic_update_slice(words_BCN, last_BC[..., None], (0, 0, old.count))
    ends_BC = options.ends(last_BC) | (count >= options.max_new_tokens)

    # Those that go on.
    running_BC = scores_BC + ends_BC * _WORST
    best_BK = jax.lax.top_k(running_BC, beams)[1]
    words_BKN, scores_BK, parents_BK = _taken(best_BK, words_BCN, running_BC, parents_BC)

    # The whole ones: of the candidates only the first K, which are good enough to be beams.
    new_BC = ends_BC & (jnp.arange(candidates) < beams)
    shut_B = (old.is_whole_BK.all(axis=1) & options.early_stopping) | ~old.open_B
    penalty = count.astype(jnp.float32) ** options.length_penalty
    # Added one by one, as the reference rounds them.
    new_scores_BC = scores_BC / penalty + shut_B[:, None] * _WORST + ~new_BC * _WORST
    merged_BM = jnp.concatenate([old.whole_scores_BK, new_scores_BC], axis=1)
    lengths_BC = jnp.full((rows, candidates), count)
    kept_BK = jax.lax.top_k(merged_BM, beams)[1]
    whole = (
        jnp.concatenate(pair, axis=1)
        for pair in (
            (old.whole_BKN, words_BCN),
            (old.whole_scores_BK, new_scores_BC),
            (old.whole_lengths_BK, lengths_BC),
            (old.is_whole_BK, new_BC),
        )
    )
    whole_BKN, whole_scores_BK, whole_lengths_BK, is_whole_BK = _taken(kept_BK, *whole)

    # A beam that goes on can hope for its present mean; that more words lower its sum is what ends the search.
    hope_B1 = scores_BK[:, :1] / penalty
    worst_BK = jnp.where(is_whole_BK, whole_scores_BK.min(axis=1, keepdims=True), _WORST)
    open_B = old.open_B & (hope_B1 > worst_BK).any(axis=1)
    whole = (whole_BKN, whole_scores_BK, whole_lengths_BK, is_whole_BK)
    return Beams(count, words_BKN, scores_BK, parents_BK, *whole, open_B, ends_BC.all())


def _taken(rows_BK, *arrays):
    """Of each array [B, M, ...] the entries `rows_BK` of axis 1."""
    return tuple(jnp.take_along_axis(x, rows_BK.reshape(*rows_BK.shape, *(1,) * (x.ndim - 2)), axis=1) for x in arrays)
