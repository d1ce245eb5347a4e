# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings (Su et al. 2021), and the published ways to stretch them over longer texts.

cos_TH, sin_TH = tables(Rope(rope_theta=10000.0), width=64, length=128)
q_BTNH, k_BTNH = rotate(q_BTNH, cos_TH, sin_TH), rotate(k_BTNH, cos_TH, sin_TH)
"""

# B batch, T time, N heads, H half the width of a head

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
    """How far each pair of channels turns from one position to the next, under the published names.

    Attributes:
      rope_theta: the base: pair i of H turns by `rope_theta ** (-i / H)`.
      rope_type: `linear` divides all by `factor`; `llama3` the slow ones only, with a ramp between the wavelengths that
        `low_freq_factor` and `high_freq_factor` name; `yarn` (Peng et al. 2023) those that turn less than `beta_slow`
        times in the original length, with a ramp up to `beta_fast` times.
      attention_factor: of `yarn`, multiplies queries and keys; None for the paper's.
      truncate: of `yarn`, whether the ramp begins and ends at whole pairs.
    """

    rope_theta: float = 10000.0
    rope_type: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


def frequencies(rope: Rope, width: int) -> np.ndarray:
    """float64[width / 2]: radians from one position to the next."""
    plain_H = rope.rope_theta ** (-np.arange(0, width, 2) / width)
    if rope.rope_type == "default":
        return plain_H
    slow_H = plain_H / rope.factor
    if rope.rope_type == "linear":
        return slow_H
    if rope.rope_type == "llama3":
        turns_H = rope.original_max_position_embeddings * plain_H / (2 * math.pi)
        kept_H = (turns_H - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    else:
        first, last = (_pair(rope, width, turns) for turns in (rope.beta_fast, rope.beta_slow))
        if rope.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        kept_H = 1 - (np.arange(width // 2) - first) / max(last - first, 0.001)
    kept_H = np.clip(kept_H, 0, 1)
    return kept_H * plain_H + (1 - kept_H) * slow_H


def tables(rope: Rope, width: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32[length, width / 2] each, for positions from 0 on."""
    return turns(rope, width, jnp.arange(length))


def turns(rope: Rope, width: int, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, float32[..., width / 2] each, for positions int[...]."""
    scale = 1.0
    if rope.rope_type == "yarn":
        paper = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
        scale = paper if rope.attention_factor is None else rope.attention_factor
    angles = places.astype(jnp.float32)[..., None] * frequencies(rope, width).astype(np.float32)
    return scale * jnp.cos(angles), scale * jnp.sin(angles)


def rotate(x_BTNH, cos_TH, sin_TH):
    """float[B, T, N, 2 H] -> the same shape and dtype; channel i is paired with channel i + H. Tables are [T, H], or
    [B, T, H] where positions differ by row."""
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos_T1H, sin_T1H = cos_TH[..., None, :], sin_TH[..., None, :]
    turned = jnp.concatenate([left * cos_T1H - right * sin_T1H, right * cos_T1H + left * sin_T1H], axis=-1)
    return turned.astype(x_BTNH.dtype)


def _pair(rope: Rope, width: int, turns: float) -> float:
    """The pair of channels, as a fraction, that turns so many times in the original length."""
    return (
        width * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi)) / 2 / math.log(rope.rope_theta)
    )
