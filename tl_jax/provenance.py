# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What decides the bits that cross a cut: where all of it is equal, they need not be computed again.

    origin = {**of_program(programs), "weights": of_weights(frozen), "records": …}
    folder = digest(origin)

The program itself stands for the network's sizes and code, what it computes in, the batch and the mesh: all that
changes it changes its text.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from tl_jax.parallel import sharding


def of_program(texts: Iterable[str]) -> dict[str, Any]:
    """The programs, as XLA is given them, and who compiles and runs them."""
    device = jax.devices()[0]
    return {
        "program": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "jax": jax.__version__,
        "device": f"{device.platform} {device.device_kind} {device.client.platform_version}",
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def of_weights(params: Mapping[str, Any]) -> str:
    """sha256 over leaves by path, bit for bit. Collective."""
    found = hashlib.sha256()
    for path in sorted(params):
        # What is kept in few bits has several parts.
        for leaf in jax.tree.leaves(params[path]):
            array = np.asarray(sharding.gathered(leaf))
            found.update(f"{path} {array.dtype} {array.shape} ".encode())
            found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()


def digest(origin: Mapping[str, Any]) -> str:
    """32 letters for plain data."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:32]
