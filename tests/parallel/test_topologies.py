# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Pods by their names, and what stands in for their devices."""

import types

import jax
import pytest

from tl_jax.core.errors import UserError
from tl_jax.parallel import topologies


@pytest.mark.parametrize(
    "name,count,gigabytes",
    [("v5e:4x4", 16, 16), ("v5p:2x2x4", 16, 95), ("v4:2x2x1", 4, 32), ("h100:2x8", 16, 80), ("a100-40:1x4", 4, 40)],
)
def test_a_name_says_how_many_devices_of_which_memory(name, count, gigabytes):
    """Chips along each side, or nodes and GPUs in each."""
    pod = topologies.parse(name)
    assert (pod.count, pod.kind.memory) == (count, gigabytes * 10**9)


@pytest.mark.parametrize(
    "name,message",
    [
        ("v5:4x4", "no kind of device; did you mean 'v5[ep]'"),
        ("4x4", "no kind of device; there are a100-40"),
        ("v5e", "says no sides"),
        ("v5e:4x", "says no sides"),
        ("v5e:16", "2 sides of at least 1.*v5e:4x4"),
        ("v5p:4x4", "3 sides of at least 1"),
        ("h100:0x8", "2 sides of at least 1"),
        ("v5e:3x5", "a host has 2x2 chips"),
    ],
)
def test_what_is_no_pod_is_told_in_one_line(name, message):
    """With what it should be."""
    with pytest.raises(UserError, match=message) as caught:
        topologies.parse(name)
    assert "\n" not in str(caught.value)


def test_tpus_are_those_of_libtpu(monkeypatch):
    """Asked for by name and by how the chip is used; its refusal is told in one line."""
    asked = []

    def describe(name, platform, *, chip_config_name):
        asked.append((name, platform, chip_config_name))
        if name == "v5e:2x2":
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such\nlayout")
        return types.SimpleNamespace(devices=["a", "b"])

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", describe)
    assert topologies.parse("v5p:2x2x4").devices() == (["a", "b"], False)
    assert asked == [("v5p:2x2x4", "tpu", "megacore")]
    with pytest.raises(UserError, match="v5e:2x2 is no topology of TPUs .INVALID_ARGUMENT: no such layout."):
        topologies.parse("v5e:2x2").devices()


def test_without_libtpu_this_cpu_stands_in(monkeypatch):
    """As it does for GPUs; so many devices and no more."""

    def describe(*_, **__):
        raise RuntimeError("JAX TPU support not installed")

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", describe)
    for name in ("v5e:2x2", "h100:1x4"):
        assert topologies.parse(name).devices() == (jax.devices("cpu")[:4], True)
    with pytest.raises(UserError, match="h100:2x8 has 16 devices, this process simulates 8.*JAX_NUM_CPU_DEVICES=16"):
        topologies.parse("h100:2x8").devices()
