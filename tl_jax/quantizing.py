# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which frozen leaves of a run are kept in fewer bits than float32 has, and the keeping.

    chosen = quantizing.choose(exp, checkpoint, model, moved)       # None where the config asks for nothing
    loading.load(checkpoint, model, keep=chosen.keep)               # one tensor after the other

`plan.quantize` keeps kernels and tables in 8 or 4 bits, for which `core.quantized` has the arithmetic;
`model.frozen_dtype` all else, or everything, in bfloat16. Both of what comes from the file alone: what trains in any
phase, what is fresh and running statistics stay as they are.
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
      kind: `int8` or `nf4`; None where no leaf is quantised.
      paths: the leaves that are.
      left: frozen kernels and tables that stay float32: less than one block of nf4 along its axis.
      halved: leaves in bfloat16.
    """

    kind: Kind | None
    paths: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    halved: tuple[str, ...] = ()

    @property
    def forms(self) -> dict[str, tuple[str, ...]]:
        """Paths by the form in which they are kept, for forms that there are."""
        found = {self.kind: self.paths, "bfloat16": self.halved}
        return {form: paths for form, paths in found.items() if paths}

    def keep(self, path: str, array: jax.Array) -> Any:
        """What is kept of a leaf that was just loaded; returns when the array itself is no longer needed."""
        if path in self.halved:
            return jax.block_until_ready(array.astype(jnp.bfloat16))
        if path not in self.paths:
            return array
        kept = jax.eval_shape(functools.partial(quantized.quantize, kind=self.kind, axis=_axis(path)), array)
        on_mesh = isinstance(array.sharding, jax.sharding.NamedSharding)
        places = quantized.shardings(kept, array.sharding) if on_mesh else None
        return jax.block_until_ready(_quantizer(self.kind, _axis(path), places)(array))

    def abstract(self, frozen: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """`frozen`, leaves with shardings, as they are kept."""
        return {path: self._abstract(path, leaf) for path, leaf in frozen.items()}

    def _abstract(self, path: str, leaf: jax.ShapeDtypeStruct) -> Any:
        if path in self.halved:
            return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding)
        if path not in self.paths:
            return leaf
        kept = jax.eval_shape(functools.partial(quantized.quantize, kind=self.kind, axis=_axis(path)), leaf)
        return jax.tree.map(
            lambda part, place: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=place),
            kept,
            quantized.shardings(kept, leaf.sharding),
        )

    def __str__(self) -> str:
        """A line for a person."""
        found = [f"{len(self.paths)} kernels and tables in {self.kind}"] if self.paths else []
        found += [f"{len(self.halved)} leaves in bfloat16"] if self.halved else []
        found += [f"as they are: {shorten(self.left)}"] if self.left else []
        return "; ".join(found)


def choose(
    exp: config.Experiment, checkpoint: Checkpoint, model: chain.Backbone, moved: Collection[str]
) -> Chosen | None:
    """What the config keeps in few bits, if it asks for anything.

    Args:
      model: may be abstract.
      moved: paths that train or follow the batches, in any phase.

    Raises:
      UserError: nothing is left to be kept so.
    """
    kind, halve = exp.plan.quantize, exp.model.frozen_dtype is not None
    if kind is None and not halve:
        return None
    fresh = loading.foresee(loading.read_from(exp.model, checkpoint), model, exp.model.fresh).fresh
    chains, params = chain.split(model)
    stay = {*moved, *fresh, *(path for stages in chains.values() for stage in stages for path in stage.stats())}
    frozen = [path for path, leaf in params.items() if path not in stay and jnp.issubdtype(leaf.dtype, jnp.floating)]
    large = [path for path in frozen if path.endswith(("/kernel", _TABLE)) and len(params[path].shape) > 1]
    short = {path for path in large if kind == "nf4" and _length(path, params[path].shape) < quantized.BLOCK}
    few = tuple(path for path in large if kind is not None and path not in short)
    advice = "train less, as plan.preset=lora does, or leave it out"
    if kind is not None and not few:
        what = f"is {kind}, and no frozen kernel or table of this run can be kept so"
        raise UserError("plan.quantize", what, advice)
    if not frozen:
        raise UserError("model.frozen_dtype", "is bfloat16, and this run freezes nothing that was loaded", advice)
    if not halve:
        return Chosen(kind, few, tuple(path for path in large if path in short))
    return Chosen(kind, few, halved=tuple(path for path in frozen if path not in few))


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
