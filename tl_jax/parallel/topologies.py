# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Devices of a pod that is not there, to compile for.

    pod = parse("v5e:4x4")                       # 16 devices of 16 GB
    devices, simulated = pod.devices()           # without libtpu so many devices of this CPU

TPUs are named as Google names them, by generation and chips along each side; GPUs by nodes and devices in a node.
"""

import dataclasses
import math
import re

import jax
from jax.experimental import topologies

from tl_jax.core.errors import UserError, did_you_mean

_NAME = re.compile(r"(?P<kind>[a-z0-9-]+):(?P<sides>\d+(x\d+)*)")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of device.

    Attributes:
      memory: bytes of one, by its data sheet.
      sides: numbers that describe a pod.
      tpu: how libtpu configures the chip; None for a GPU.
    """

    memory: int
    sides: int
    tpu: str | None = None


# The two cores of a v4 or v5p chip work as one device.
KINDS = {
    "v4": Kind(32 * 10**9, 3, "megacore"),
    "v5e": Kind(16 * 10**9, 2, "default"),
    "v5p": Kind(95 * 10**9, 3, "megacore"),
    "v6e": Kind(32 * 10**9, 2, "default"),
    "a100-40": Kind(40 * 10**9, 2),
    "a100-80": Kind(80 * 10**9, 2),
    "h100": Kind(80 * 10**9, 2),
    "h200": Kind(141 * 10**9, 2),
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """So many devices of a kind; `name` is as it was asked for."""

    name: str
    kind: Kind
    count: int

    def devices(self) -> tuple[list[jax.Device], bool]:
        """Devices to compile for, on which nothing can run, and whether they are simulated: devices of this process's
        CPU in place of GPUs, or of TPUs where libtpu is not installed.

        Raises:
          UserError: libtpu knows no such topology, or this process has too few CPU devices.
        """
        if self.kind.tpu is not None:
            try:
                found = topologies.get_topology_desc(self.name, "tpu", chip_config_name=self.kind.tpu)
                return list(found.devices), False
            except jax.errors.JaxRuntimeError as error:
                said = " ".join(str(error).split())
                raise UserError("--topology", f"{self.name} is no topology of TPUs ({said})") from error
            except RuntimeError:
                # What JAX raises where there is no libtpu.
                pass
        devices = jax.devices("cpu")
        if len(devices) < self.count:
            what = f"{self.name} has {self.count} devices, this process simulates {len(devices)}"
            raise UserError("--topology", what, f"set JAX_NUM_CPU_DEVICES={self.count} before JAX starts")
        return devices[: self.count], True


def parse(name: str) -> Pod:
    """`KIND:AxB`, or `KIND:AxBxC` for TPUs that lie in three dimensions.

    Raises:
      UserError: no such kind, or another number of sides than its pods have.
    """
    found = _NAME.fullmatch(name)
    kind = KINDS.get(found["kind"]) if found else None
    if kind is None:
        asked = name.partition(":")[0]
        what = f"is {name!r}, no kind of device{did_you_mean(asked, KINDS)}"
        if found is None and asked in KINDS:
            what = f"is {name!r}, which says no sides"
        raise UserError("--topology", what, "write v5e:4x4 for TPUs, h100:2x8 for two nodes of eight GPUs")
    sides = [int(side) for side in found["sides"].split("x")]
    if len(sides) != kind.sides or 0 in sides:
        what = f"is {name!r}, {found['kind']} has {kind.sides} sides of at least 1"
        raise UserError("--topology", what, f"write {found['kind']}:{'x'.join(['4'] * kind.sides)}")
    if kind.tpu is not None and any(side % 2 for side in sides[:2]):
        raise UserError("--topology", f"is {name!r}, a host has 2x2 chips", "give even sides")
    return Pod(name, kind, math.prod(sides))
