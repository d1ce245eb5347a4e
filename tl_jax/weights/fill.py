# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Straight from the file to device arrays, one tensor at a time: no random initialisation of what is loaded, no
second copy of the model in memory."""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
    keep: Callable[[str, jax.Array], Any] | None = None,
) -> tuple[dict[str, jax.Array], Receipt]:
    """Read what `match` pairs.

    Args:
      params: the abstract parameters.
      dtype: of floating parameters; None keeps the file's, but widens float16 and narrows float64 to float32.
      shardings: by path; each device gets its part only. None puts all on the default device.
      exact: paths that are float32 whatever `dtype` says: running statistics.
      keep: (path, array) -> what is kept of it, if not the array itself; called as soon as it is on the devices.

    Returns:
      The filled parameters by path, and the receipt.

    Raises:
      UserError: a tensor holds NaN or infinity, or a kernel nothing but zeros.
    """
    # Hashing the files takes as long as reading them, and another core can do it.
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(files.digest)
        arrays, entries = _fill(files, match, params, dtype, shardings, where, exact, keep)
    receipt = Receipt(where, digest.result(), entries, match.fresh, match.dropped, match.ignored, match.resized)
    return arrays, receipt


def _fill(files, match, params, dtype, shardings, where, exact, keep) -> tuple[dict[str, jax.Array], tuple[Entry, ...]]:
    arrays: dict[str, jax.Array] = {}
    entries, resized = [], {path: (kinds, shape) for path, _, shape, kinds in match.resized}
    for (names, paths, layout), tensors in zip(match.filled, files.read_all([names for names, _, _ in match.filled])):
        for name, tensor in zip(names, tensors):
            _refuse_bad_values(name, tensor, paths, where)
        cast = None
        for path, array in zip(paths, layout.load(tensors)):
            if path not in params:
                continue
            if path in resized:
                array = surgery.apply(resized[path][0], array, resized[path][1])
            target = _target(array.dtype, "float32" if path in exact else dtype)
            if target != array.dtype:
                cast, array = np.dtype(target).name, array.astype(target)
            array = _put(array, None if shardings is None else shardings[path])
            arrays[path] = array if keep is None else keep(path, array)
        entries.append(Entry(names, paths, layout.name, files.tensors[names[0]].dtype, cast))
    return jax.block_until_ready(arrays), tuple(entries)


def _target(found: np.dtype, dtype: str | None) -> np.dtype:
    if found.kind not in "fV" and found != ml_dtypes.bfloat16:
        return found
    if dtype is not None:
        return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return np.dtype(np.float32) if found in (np.float16, np.float64) else found


def _put(array: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    # Transposed views go as they are: JAX copies by strides in blocks, NumPy takes three to ten times as long.
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _refuse_bad_values(name: str, tensor: np.ndarray, paths: tuple[str, ...], where: str) -> None:
    if tensor.dtype.kind in "iub" or not tensor.size:
        return
    # One pass and no temporary of the tensor's size: a sum is finite only if all of it is, and 0 if all of it is 0.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(tensor, dtype=np.float32)
    if not np.isfinite(total):
        bad = int(np.sum(~np.isfinite(tensor.astype(np.float32))))
        if bad:
            raise UserError(where, f"tensor {name} holds {bad} values that are NaN or infinite", "download it again")
    # What an interrupted download leaves. Published biases are zero, and RoBERTa's table of segments; a kernel never.
    if total == 0 and all(path.endswith("/kernel") for path in paths) and not np.any(tensor):
        raise UserError(where, f"tensor {name} holds nothing but zeros", "download it again")
