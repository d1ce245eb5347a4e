# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which leaves of a run are kept in 8 or 4 bits, and the keeping.

    chosen = quantizing.choose(exp, checkpoint, model, moved)       # None where plan.quantize asks for nothing
    loading.load(checkpoint, model, keep=chosen.keep)               # one tensor after the other

Frozen kernels and tables that come from the file: what trains in any phase, what is fresh, norms and biases stay as
they are. `core.quantized` has the arithmetic.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tl_jax import config, loading
from tl_jax.core import chain, quantized
from tl_jax.core.errors import UserError, shorten
from tl_jax.core.quantized import Kind, Quantized
from tl_jax.loading import Checkpoint

_TABLE = "/embedding"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What is kept in few bits.

    Attributes:
      kind: `int8` or `nf4`.
      paths: the leaves.
      left: frozen kernels and tables that stay as they are: less than one block of nf4 along its axis.
    """

    kind: Kind
    paths: tuple[str, ...]
    left: tuple[str, ...]

    def keep(self, path: str, array: jax.Array) -> Any:
        """What is kept of a leaf that was just loaded; returns when the array itself is no longer needed."""
        if path not in self.paths:
            return array
        kept = jax.eval_shape(functools.partial(quantized.quantize, kind=self.kind, axis=_axis(path)), array)
        on_mesh = isinstance(array.sharding, jax.sharding.NamedSharding)
        places = quantized.shardings(kept, array.sharding) if on_mesh else None
        return jax.block_until_ready(_quantizer(self.kind, _axis(path), places)(array))

    def abstract(self, frozen: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """`frozen`, leaves with shardings, as they are kept."""
        return {path: self._abstract(path, leaf) if path in self.paths else leaf for path, leaf in frozen.items()}

    def _abstract(self, path: str, leaf: jax.ShapeDtypeStruct) -> Quantized:
        kept = jax.eval_shape(functools.partial(quantized.quantize, kind=self.kind, axis=_axis(path)), leaf)
        return jax.tree.map(
            lambda part, place: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=place),
            kept,
            quantized.shardings(kept, leaf.sharding),
        )

    def __str__(self) -> str:
        """A line for a person."""
        left = f"; as they are: {shorten(self.left)}" if self.left else ""
        return f"{len(self.paths)} frozen kernels and tables in {self.kind}{left}"


def choose(
    exp: config.Experiment, checkpoint: Checkpoint, model: chain.Backbone, moved: Collection[str]
) -> Chosen | None:
    """What `plan.quantize` keeps in few bits, if it asks for anything.

    Args:
      model: may be abstract.
      moved: paths that train or follow the batches, in any phase.

    Raises:
      UserError: nothing is left to be quantised.
    """
    kind = exp.plan.quantize
    if kind is None:
        return None
    fresh = loading.foresee(loading.read_from(exp.model, checkpoint), model, exp.model.fresh).fresh
    _, params = chain.split(model)
    stay = {*moved, *fresh}
    frozen = [
        path
        for path, leaf in params.items()
        if path not in stay
        and path.endswith(("/kernel", _TABLE))
        and len(leaf.shape) > 1
        and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    short = {path for path in frozen if kind == "nf4" and _length(path, params[path].shape) < quantized.BLOCK}
    paths = tuple(path for path in frozen if path not in short)
    if not paths:
        raise UserError(
            "plan.quantize",
            f"is {kind}, and no frozen kernel or table of this run can be kept so",
            "train less, as plan.preset=lora does, or leave it out",
        )
    return Chosen(kind, paths, tuple(path for path in frozen if path in short))


def _axis(path: str) -> int:
    """Rows of tables are looked up one by one, so each has scales of its own; of kernels the columns have."""
    return 1 if path.endswith(_TABLE) else 0


def _length(path: str, shape: tuple[int, ...]) -> int:
    """Numbers along the axis on which blocks lie."""
    return (math.prod(shape[:-1]), shape[-1])[_axis(path)]


@functools.cache
def _quantizer(kind: Kind, axis: int, places: Quantized | None):
    """Jitted once for all leaves that lie alike."""
    return jax.jit(functools.partial(quantized.quantize, kind=kind, axis=axis), out_shardings=places)
