# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Functions that families share: activations by their published names, dropout by key."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tl_jax.core.errors import UserError, did_you_mean


@jax.custom_vjp
def _gelu(x: jax.Array) -> jax.Array:
    """The exact form, by `erf` as PyTorch has it: `jax.nn.gelu` takes `erfc`, with which the passes of an MLP, forward
    and backward, took 2.4 times as long on a CPU. `x` alone is kept for the way back, where `erf` is taken again."""
    return x * _normal_below(x)


def _normal_below(x):
    """The normal distribution's share below x."""
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_back(x, given):
    density = jnp.exp(-0.5 * x * x) * (0.5 / math.pi) ** 0.5
    return (given * (_normal_below(x) + x * density),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_back)


# JAX's default is the tanh approximation, 4.7e-4 away from the exact form.
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
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


def dropout(
    x: jax.Array, rate: float | jax.Array, key: jax.Array | None, portion: tuple[int, int] = (0, 1)
) -> jax.Array:
    """Zero each element with probability `rate` in [0, 1), and scale the others so that the expectation stays.

    Without a key, or at a rate that is the number 0, `x` itself; a rate float32[] is one that differs between blocks.

    Args:
      portion: (i, n), where `x` holds the rows i, i + n, … of what is meant: it loses what they would lose.
    """
    if key is None or isinstance(rate, float) and rate == 0.0:
        return x
    below = jnp.uint32(round(rate * 2**32)) if isinstance(rate, float) else (rate * 2.0**32).astype(jnp.uint32)
    kept = jnp.asarray(1.0 - rate, x.dtype)
    return jnp.where(_words(key, x.shape, portion) >= below, x / kept, jnp.zeros_like(x))


def _words(key: jax.Array, shape: tuple[int, ...], portion: tuple[int, int]) -> jax.Array:
    """uint32 of this shape: a hash of each element's place, keyed twice.

    `jax.random.bits` would run twenty rounds of threefry for every word, as a loop of its own at every site: on a CPU
    that takes longer than the layer around it, and doubles the time to compile. Two rounds of an integer finaliser
    fuse into the product that they mask, depend on no sharding, and are drawn again in the backward pass instead of
    kept.
    """
    first, second = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)[:2]
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        first_row, step = portion if axis == 0 else (0, 1)
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(step) + jnp.uint32(first_row)
        place = place * jnp.uint32(size) + along
    return _mix(_mix(place ^ first) + second)


def _mix(x: jax.Array) -> jax.Array:
    """The 32-bit finaliser of MurmurHash3 (Appleby 2011): every bit of the input turns about half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
