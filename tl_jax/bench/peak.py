# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a device could be: by a product of large matrices, and by its vendor's data sheet.

share = flops / seconds / peak.measured(jnp.bfloat16)
peak.vendor("NVIDIA H200", "bfloat16")                 # 9.89e14
"""

import time

import jax
import jax.numpy as jnp

# Dense products, FLOP/s. float32 is given where XLA's default precision computes it on units of their own (TF32).
_A100 = {"bfloat16": 312e12, "float32": 156e12}
_HOPPER = {"bfloat16": 989e12, "float32": 494e12}
_VENDOR = {
    "NVIDIA A100": _A100,
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float32": 378e12},
    "NVIDIA H100": _HOPPER,
    "NVIDIA H200": _HOPPER,
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5p": {"bfloat16": 459e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
}
_SIZES = (1024, 2048, 4096, 8192)
_PRODUCTS, _REPEATS = 4, 3
# A product that takes longer is large enough.
_ENOUGH = 0.05


def measured(dtype) -> float:
    """FLOP/s of one device: the best of products of square matrices, each larger than the one before until one takes
    0.05 s; random numbers, default precision. Of each size the best of 3 times 4 products that are blocked on once."""
    best = 0.0
    product = jax.jit(jnp.matmul)
    for size in _SIZES:
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product(a, a).block_until_ready()
        quickest = min(_timed(product, a) for _ in range(_REPEATS)) / _PRODUCTS
        best = max(best, 2 * size**3 / quickest)
        if quickest > _ENOUGH:
            break
    return best


def _timed(product, a: jax.Array) -> float:
    began = time.perf_counter()
    jax.block_until_ready([product(a, a) for _ in range(_PRODUCTS)])
    return time.perf_counter() - began


def vendor(device_kind: str, dtype: str) -> float | None:
    """FLOP/s by the data sheet, of the longest name that `device_kind` begins with; None for devices not listed."""
    known = [name for name in _VENDOR if device_kind.startswith(name)]
    return _VENDOR[max(known, key=len)].get(dtype) if known else None
