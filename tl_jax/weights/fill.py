# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Straight from the file to device arrays, one tensor at a time: no random initialisation of what is loaded, no
second copy of the model in memory."""

from collections.abc import Collection, Mapping

import jax
import ml_dtypes
import numpy as np

from tl_jax.core.errors import UserError
from tl_jax.weights import surgery
from tl_jax.weights.files import WeightFiles
from tl_jax.weights.match import Match
from tl_jax.weights.receipt import Entry, Receipt

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def fill(
    files: WeightFiles,
    match: Match,
    params: Mapping[str, jax.ShapeDtypeStruct],
    dtype: str | None = None,
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    where: str = "",
    exact: Collection[str] = (),
) -> tuple[dict[str, jax.Array], Receipt]:
    """Read what `match` pairs.

    Args:
      params: the abstract parameters.
      dtype: of floating parameters; None keeps the file's, but widens float16 and narrows float64 to float32.
      shardings: by path; each device gets its part only. None puts all on the default device.
      exact: paths that are float32 whatever `dtype` says: running statistics.

    Returns:
      The filled parameters by path, and the receipt.

    Raises:
      UserError: a tensor holds NaN or infinity.
    """
    arrays: dict[str, jax.Array] = {}
    entries, resized = [], {path: (kinds, shape) for path, _, shape, kinds in match.resized}
    for (names, paths, layout), tensors in zip(match.filled, files.read_all([names for names, _, _ in match.filled])):
        for name, tensor in zip(names, tensors):
            _refuse_bad_values(name, tensor, where)
        cast = None
        for path, array in zip(paths, layout.load(tensors)):
            if path not in params:
                continue
            if path in resized:
                array = surgery.apply(resized[path][0], array, resized[path][1])
            target = _target(array.dtype, "float32" if path in exact else dtype)
            if target != array.dtype:
                cast, array = np.dtype(target).name, array.astype(target)
            arrays[path] = _put(array, None if shardings is None else shardings[path])
        entries.append(Entry(names, paths, layout.name, files.tensors[names[0]].dtype, cast))
    jax.block_until_ready(arrays)
    receipt = Receipt(where, files.digest(), tuple(entries), match.fresh, match.dropped, match.ignored, match.resized)
    return arrays, receipt


def _target(found: np.dtype, dtype: str | None) -> np.dtype:
    if found.kind not in "fV" and found != ml_dtypes.bfloat16:
        return found
    if dtype is not None:
        return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return np.dtype(np.float32) if found in (np.float16, np.float64) else found


def _put(array: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        return jax.device_put(np.ascontiguousarray(array))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.ascontiguousarray(array[index]))


def _refuse_bad_values(name: str, tensor: np.ndarray, where: str) -> None:
    if tensor.dtype.kind in "iub":
        return
    # One pass and no temporary of the tensor's size: a sum is finite only if all of it is, short of overflow.
    total = np.sum(tensor, dtype=np.float64) if tensor.size else 0.0
    if not np.isfinite(total):
        bad = int(np.sum(~np.isfinite(tensor.astype(np.float32))))
        raise UserError(where, f"tensor {name} holds {bad} values that are NaN or infinite", "download it again")
