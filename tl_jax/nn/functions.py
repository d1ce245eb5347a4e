# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Functions that families share: activations by their published names, dropout by key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tl_jax.core.errors import UserError, did_you_mean

# `gelu` is the exact form; JAX's default is the tanh approximation, 4.7e-4 away.
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation that a `config.json` calls `name`.

    Raises:
      UserError: unknown name.
    """
    if name not in _ACTIVATIONS:
        raise UserError("config.json", f"activation {name!r} is not known{did_you_mean(name, _ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def keys(key: jax.Array | None, count: int) -> tuple:
    """`count` keys from one, or as many None where no random numbers are drawn."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate`, rounded to a multiple of 1/256 below 1, and scale the others so that
    the expectation stays.

    Without a key, or at rate 0, `x` itself.
    """
    chance = min(round(rate * 256), 255)
    if key is None or chance == 0:
        return x
    # Four decisions a random word: drawing a word an element takes longer on a CPU than the layer around it.
    width = x.shape[-1]
    words = jax.random.bits(key, (*x.shape[:-1], -(-width // 4)), jnp.uint32)
    draws = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], -1)[..., :width]
    return jnp.where(draws >= chance, x * (256 / (256 - chance)), jnp.zeros_like(x))
