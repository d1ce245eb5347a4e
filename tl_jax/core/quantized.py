# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays kept in 8 or 4 bits, and made whole where they are used.

    kept = quantize(kernel, "nf4", axis=0)         # a pytree of codes and scales
    kernel = whole(kept)                           # float32 again, nearly
    y = run(function, {"kernel": kept}, x)         # function({"kernel": kernel}, x)

What is differentiated through `run` keeps the codes for its backward pass, never the float arrays.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

Kind = Literal["int8", "nf4"]

# Numbers that share a scale in nf4.
BLOCK = 64
# NormalFloat: quantiles of a normal distribution, scaled to [-1, 1], with a zero among them (Dettmers et al. 2023).
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_MIDDLES = tuple((low + high) / 2 for low, high in zip(LEVELS, LEVELS[1:]))
_NAME = "quantized.whole"
# What a backward pass does again rather than keep: moving numbers, so that no other form of a whole array is kept, and
# arithmetic, which a program without barriers would do again too.
_AGAIN = frozenset(
    ("broadcast_in_dim", "concatenate", "convert_element_type", "optimization_barrier", "reshape", "slice", "split")
    + ("squeeze", "transpose", "add", "add_any", "sub", "mul", "div", "neg", "max", "min", "integer_pow", "square")
    + ("select_n",)
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """An array of at least two dimensions, seen as a matrix: all dimensions but the last are its rows.

    Attributes:
      codes: int8, the matrix; or uint8 with two codes a byte, the matrix in blocks: [rows / 64, 32, columns], or
        [rows, columns / 64, 32], where the last block may be filled up with zeros. The second half of a block has the
        high bits.
      scales: float32, of as many dimensions, 1 where numbers share one.
      shape: of the array.
      kind: `int8` or `nf4`.
      axis: of the matrix, along which numbers share a scale.
    """

    codes: jax.Array
    scales: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    kind: Kind = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})


def quantize(array: jax.Array, kind: Kind, axis: int) -> Quantized:
    """The nearest that so few bits can say.

    Args:
      array: float[..., n], finite.
      kind: `int8`: multiples of the largest absolute value of a column (axis 0) or row (axis 1) divided by 127;
        `nf4`: 16 levels times the largest absolute value of 64 numbers in a row along the axis (Dettmers et al. 2023).
      axis: 0 or 1.
    """
    matrix = array.astype(jnp.float32).reshape(-1, array.shape[-1])
    if kind == "int8":
        scales = jnp.max(jnp.abs(matrix), axis=axis, keepdims=True) / 127
        codes = jnp.clip(jnp.round(matrix / _divisor(scales)), -127, 127).astype(jnp.int8)
        return Quantized(codes, scales, array.shape, kind, axis)
    missing = -matrix.shape[axis] % BLOCK
    matrix = jnp.pad(matrix, [(0, missing if i == axis else 0) for i in (0, 1)])
    shape = list(matrix.shape)
    shape[axis : axis + 1] = [shape[axis] // BLOCK, BLOCK]
    blocks = matrix.reshape(shape)
    scales = jnp.max(jnp.abs(blocks), axis=axis + 1, keepdims=True)
    codes = jnp.searchsorted(jnp.asarray(_MIDDLES), blocks / _divisor(scales), method="compare_all").astype(jnp.uint8)
    low, high = jnp.split(codes, 2, axis=axis + 1)
    return Quantized(low | high << 4, scales, array.shape, kind, axis)


def whole(kept: Quantized) -> jax.Array:
    """The array that was quantised, nearly: float32, products of codes and scales."""
    axis, shape = kept.axis, kept.shape

    def decode(codes, scales):
        if kept.kind == "int8":
            return (codes.astype(jnp.float32) * scales).reshape(shape)
        codes = jnp.concatenate([codes & 15, codes >> 4], axis=axis + 1)
        blocks = jnp.asarray(LEVELS).at[codes].get(mode="promise_in_bounds") * scales
        size = (math.prod(shape[:-1]), shape[-1])
        filled = blocks.reshape(tuple(-1 if i == axis else size[i] for i in (0, 1)))
        return jax.lax.slice_in_dim(filled, 0, size[axis], axis=axis).reshape(shape)

    # One operation for the policy below, whatever it consists of: a name on its result would not do, as then what
    # went by another name just before it would be kept.
    return jax.lax.composite(decode, name=_NAME)(kept.codes, kept.scales)


def run(function: Callable[[dict[str, Any], Any], Any], leaves: Mapping[str, Any], x: Any) -> Any:
    """`function(leaves, x)`, with whole arrays in place of quantised ones.

    They are made when `x` is there, not before, and once more for the backward pass, which keeps the results of
    products, reductions and the like, and does cheap arithmetic again.
    """
    if not any(isinstance(leaf, Quantized) for leaf in leaves.values()):
        return function(leaves, x)

    def body(leaves, x):
        kept = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, Quantized)}
        kept, x = jax.lax.optimization_barrier((kept, x))
        made = {path: whole(jax.lax.stop_gradient(leaf)) for path, leaf in kept.items()}
        return function({**leaves, **made}, x)

    return jax.checkpoint(body, policy=_keeps)(dict(leaves), x)


def _keeps(primitive, *_, **params) -> bool:
    return primitive.name not in _AGAIN and params.get("name") != _NAME


def shardings(kept: Quantized, place: NamedSharding) -> Quantized:
    """Where codes and scales lie if the array, of at least two dimensions, would lie at `place`.

    An axis of the mesh that does not divide a dimension, or of a convolution's window, is left out.

    Args:
      kept: abstract will do.
    """
    spec = (*place.spec, *[None] * (len(kept.shape) - len(place.spec)))
    matrix = [spec[0] if len(kept.shape) == 2 else None, spec[-1]]
    if kept.kind == "nf4":
        matrix.insert(kept.axis + 1, None)

    def fit(leaf):
        names = [name if name and leaf.shape[i] % _devices(place, name) == 0 else None for i, name in enumerate(matrix)]
        return NamedSharding(place.mesh, PartitionSpec(*names))

    return jax.tree.map(fit, kept)


def _divisor(scales: jax.Array) -> jax.Array:
    return jnp.where(scales > 0, scales, 1)


def _devices(place: NamedSharding, names: str | tuple[str, ...]) -> int:
    return math.prod(place.mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))
