# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A memory by itself: what it keeps, where tokens are, and what a query sees of them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry
from tl_jax.nn import memory as memories

# B rows, T tokens, L columns


class _Spy(nnx.Module):
    """A stage whose keys are its input, and whose output is all that it is told."""

    def __call__(self, x_BT, context):
        k_BT11 = x_BT[..., None, None]
        keys, values, seen = context.memory.extend(k_BT11, -k_BT11, window=3)
        kept = context.memory.once(lambda: jnp.prod(x_BT, axis=1))
        return {
            "places": context.memory.places_BT,
            "keys": keys[..., 0, 0],
            "values": values[..., 0, 0],
            "seen": seen,
            "ahead": context.memory.ahead(),
            "kept": kept,
        }


STAGES = (chain.Stage("blocks/0", nnx.graphdef(_Spy()), ()),)


def read(x, memory, counts=None):
    """One stage over `x`."""
    x = np.asarray(x, np.float32)
    counts = np.ones(x.shape, bool) if counts is None else np.asarray(counts)
    return memories.run(STAGES, {}, Carry(jnp.asarray(x), {}, {}), memory, jnp.asarray(counts))


def prompt():
    """Rows of 3 tokens and of 1, with room for 5."""
    counts = np.array([[1, 1, 1], [1, 0, 0]], bool)
    return read([[1, 2, 3], [4, 5, 6]], memories.empty(2, 5), counts)


def test_keys_are_appended_and_the_rest_stays_empty():
    """The prompt at once, then token by token, in the next column of every row."""
    _, memory = prompt()
    _, memory = read([[7], [8]], memory)
    found, memory = read([[9], [10]], memory)
    np.testing.assert_array_equal(found["keys"], [[1, 2, 3, 7, 9], [4, 5, 6, 8, 10]])
    np.testing.assert_array_equal(found["values"], -found["keys"])
    first, _ = prompt()
    np.testing.assert_array_equal(first["keys"][:, 3:], 0)


def test_places_count_tokens_alone():
    """A row goes on from its own last token, whatever the padding behind it."""
    found, memory = prompt()
    np.testing.assert_array_equal(found["places"], [[0, 1, 2], [0, 1, 2]])
    found, memory = read([[7], [8]], memory)
    np.testing.assert_array_equal(found["places"], [[3], [1]])
    np.testing.assert_array_equal(memory.next_B, [4, 2])


def test_a_query_sees_the_window_up_to_itself():
    """No padding, no empty column, nothing later, nothing more than two tokens back."""
    found, memory = prompt()
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    np.testing.assert_array_equal(found["seen"][0], np.array(expected, bool))
    np.testing.assert_array_equal(found["seen"][1, 0], np.array([1, 0, 0, 0, 0], bool))
    found, _ = read([[7], [8]], memory)
    np.testing.assert_array_equal(found["seen"][:, 0], np.array([[0, 1, 1, 1, 0], [1, 0, 0, 1, 0]], bool))


def test_distances_are_between_places():
    """Not columns: what a row's second token sees as one place behind may stand three columns before it."""
    _, memory = prompt()
    found, _ = read([[7], [8]], memory)
    np.testing.assert_array_equal(found["ahead"][:, 0], [[-3, -2, -1, 0, 4], [-1, 4, 4, 0, 4]])


def test_what_is_kept_once_is_not_computed_again():
    """It is the prompt's, and the program of a step has no trace of it."""
    found, memory = prompt()
    np.testing.assert_array_equal(found["kept"], [6, 120])
    found, memory = read([[70], [80]], memory)
    np.testing.assert_array_equal(found["kept"], [6, 120])

    def step(x, memory):
        return memories.run(STAGES, {}, Carry(x, {}, {}), memory, jnp.ones(x.shape, bool))

    x = jnp.ones((2, 1))
    assert "reduce_prod" in str(jax.make_jaxpr(step)(x, memories.empty(2, 5)))
    assert "reduce_prod" not in str(jax.make_jaxpr(step)(x, memory))


def test_beams_share_all_but_what_has_grown():
    """Rows are repeated side by side; in another order, their keys go along and their prompt stays."""
    _, memory = prompt()
    beams = memory.repeated(2)
    np.testing.assert_array_equal(beams.next_B, [3, 3, 1, 1])
    assert beams.column == 3
    _, beams = read([[1], [2], [3], [4]], beams)
    turned = beams.reordered(jnp.array([1, 1, 2, 3]))
    np.testing.assert_array_equal(turned.grown["blocks/0"][0][:, 3, 0, 0], [2, 2, 3, 4])
    for name in ("places_BL", "next_B", "fixed"):
        for one, other in zip(jax.tree.leaves(getattr(turned, name)), jax.tree.leaves(getattr(beams, name))):
            np.testing.assert_array_equal(one, other)
