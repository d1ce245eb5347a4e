# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Devices in a grid of three named axes, and the batch sizes that fit it.

    mesh = build(exp.mesh)
    check_batch(mesh, exp.train.batch_size, "train.batch_size")

The axes are always there, of size 1 where they are not used, so nothing else asks which of them exist.
"""

import math
import os
from collections.abc import Sequence

import jax
from jax.sharding import AxisType

from tl_jax import config
from tl_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def build(mesh: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh of axes `AXES` over `devices`, or over all devices of all processes.

    Axis types are Auto: the compiler places what no sharding is given for.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        asked = "x".join(map(str, sizes))
        needs = f"a multiple of {fixed}" if -1 in sizes else f"{fixed}"
        raise UserError(
            "mesh",
            f"{asked} ({', '.join(AXES)}) needs {needs} devices, there are {len(devices)}",
            "give sizes whose product is the number of devices; one may be -1, for all that the others leave",
        )
    # The default axis type is Explicit, under which ordinary model code does not trace.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_batch(mesh: jax.sharding.Mesh, batch_size: int, where: str) -> None:
    """Raise a UserError about the field `where` if `batch_size` rows cannot be dealt out evenly over the mesh."""
    data, fsdp = (mesh.shape[axis] for axis in BATCH_AXES)
    portions = data * fsdp
    below = batch_size // portions * portions
    if below == batch_size and batch_size > 0:
        return
    fits = " or ".join(str(size) for size in (below, below + portions) if size > 0)
    raise UserError(
        where, f"{batch_size} is not divisible by data {data} x fsdp {fsdp} = {portions} of the mesh", f"use {fits}"
    )


def memory_limit(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes that a device says it has; None where it says nothing, as a CPU."""
    stats = mesh.local_devices[0].memory_stats() or {}
    return int(stats["bytes_limit"]) if "bytes_limit" in stats else None


def memory(mesh: jax.sharding.Mesh) -> int:
    """Bytes on one device; processes' devices on a CPU share the machine's memory."""
    limit = memory_limit(mesh)
    if limit is not None:
        return limit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
