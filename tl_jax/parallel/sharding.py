# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where parameters, optimizer state and batches lie on a mesh.

    shardings = param_shardings(abstract, mesh, family.AXES)
    slots = opt_state_shardings(tx, abstract, shardings, mesh)
    opt_state = jax.jit(tx.init, out_shardings=slots)(params)
    batch = put_batch(rows_of_this_process, mesh)

Trees of parameters are flat, {path: leaf}. Rules come from the model's family: this file knows paths and shapes,
no layers.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tl_jax.parallel.mesh import BATCH_AXES

AxesRules = tuple[tuple[str, tuple[str | None, ...]], ...]

MIN_SIZE = 2**14


def param_spec(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: AxesRules = (), min_size: int = MIN_SIZE
) -> PartitionSpec:
    """How one parameter is split.

    The first rule whose pattern matches the whole path names a mesh axis for each dimension; an axis that does not
    divide its dimension is left out. Then, in a leaf of at least `min_size` elements, the largest dimension that is
    still whole and divisible takes `fsdp`. Everything else is replicated.

    Args:
      path: `blocks/0/attn/query/kernel`.
      shape: of the whole parameter.
      rules: `((".*/(query|key|value|up)/kernel", (None, "tensor")), …)`, as many entries as the leaf has dimensions.
      min_size: in elements; below, gathering costs more than the memory is worth.
    """
    spec: list[str | None] = [None] * len(shape)
    for pattern, axes in rules:
        if re.fullmatch(pattern, path):
            assert len(axes) == len(shape), f"{path}: rule {pattern!r} has {len(axes)} axes, the shape is {shape}"
            spec = [axis if axis and _divides(mesh, axis, size) else None for axis, size in zip(axes, shape)]
            break
    if "fsdp" not in spec and np.prod(shape, dtype=np.int64) >= min_size:
        free = [dim for dim, size in enumerate(shape) if spec[dim] is None and _divides(mesh, "fsdp", size)]
        if free:
            spec[max(free, key=lambda dim: shape[dim])] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def param_shardings(
    params: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, rules: AxesRules = (), min_size: int = MIN_SIZE
) -> dict[str, NamedSharding]:
    """`param_spec` for every leaf of a flat tree of arrays or of their shapes."""
    return {
        path: NamedSharding(mesh, param_spec(path, leaf.shape, mesh, rules, min_size)) for path, leaf in params.items()
    }


def opt_state_shardings(
    tx: optax.GradientTransformation,
    params: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, NamedSharding],
    mesh: Mesh,
) -> optax.OptState:
    """Shardings in the structure of `tx.init(params)`, for `out_shardings` of its jitted init and of the step.

    A slot of its parameter's shape lies as the parameter does; counters, and slots of another shape (the rows and
    columns of Adafactor), are replicated. Without them `jit(tx.init)` puts everything on one device, and the eager
    `tx.init` the counters alone, after which the second step compiles again.
    """

    def slot(value, param, sharding):
        if isinstance(value, optax.MaskedNode):
            return value
        return sharding if value.shape == param.shape else replicated(mesh)

    return optax.tree_map_params(
        tx,
        slot,
        jax.eval_shape(tx.init, dict(params)),
        dict(params),
        {path: shardings[path] for path in params},
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension dealt out over `data` and `fsdp`, the same rows along `tensor`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """int64[n]: the rows of a global batch that this process' devices hold, ascending.

    Two processes that share a row along `tensor` both hold it. `batch_size` is divisible by the batch axes
    (`mesh.check_batch`).
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def put_batch(batch: Mapping[str, np.ndarray | jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """This process' rows of every leaf, as arrays of the whole batch; arrays on devices stay as they are.

    Args:
      batch: [n, ...] of any dtype that JAX has, row i being row `process_rows(...)[i]` of the global batch. On CPU the
        result may share this memory: do not write to it again.

    Returns:
      Arrays [batch_size, ...] with `batch_sharding`.
    """
    place = batch_sharding(mesh)

    def put(leaf):
        return leaf if isinstance(leaf, jax.Array) else jax.make_array_from_process_local_data(place, leaf)

    return jax.tree.map(put, dict(batch))


def spread_batch(batch: Mapping[str, jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Within a program: the batch lies as `put_batch` would put it."""
    return jax.lax.with_sharding_constraint(dict(batch), batch_sharding(mesh))


def gathered(array: jax.Array) -> jax.Array | np.ndarray:
    """The same array, readable on this process: whole, where other processes hold parts of it. Collective."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def _divides(mesh: Mesh, axis: str, size: int) -> bool:
    return mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0
