# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The mesh and what fits it, on eight simulated devices."""

import jax
import pytest
from jax.sharding import AxisType

from tl_jax import config
from tl_jax.core.errors import UserError
from tl_jax.parallel import mesh


@pytest.mark.parametrize(
    "asked, shape",
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 4, -1), (1, 4, 2)), ((2, 2, 2), (2, 2, 2))],
)
def test_open_axis_takes_the_rest(asked, shape):
    """-1 is what the other sizes leave of all devices."""
    built = mesh.build(config.Mesh(*asked))
    assert dict(built.shape) == dict(zip(("data", "fsdp", "tensor"), shape))
    assert built.axis_types == (AxisType.Auto,) * 3


def test_given_devices_only():
    """A mesh over some devices, each of them once."""
    devices = jax.devices()[2:6]
    built = mesh.build(config.Mesh(data=2, fsdp=2), devices)
    assert set(built.devices.flat) == set(devices)


@pytest.mark.parametrize(
    "asked, message",
    [
        ((3, 2, 1), r"mesh: 3x2x1 \(data, fsdp, tensor\) needs 6 devices, there are 8\. Give sizes"),
        ((-1, 3, 1), r"mesh: -1x3x1 .* needs a multiple of 3 devices, there are 8"),
        ((16, 1, -1), r"mesh: 16x1x-1 .* needs a multiple of 16 devices, there are 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(asked, message):
    """Neither idle devices nor too few."""
    with pytest.raises(UserError, match=message):
        mesh.build(config.Mesh(*asked))


@pytest.mark.parametrize("batch_size, fits", [(30, "28 or 32"), (3, "4"), (0, "4")])
def test_batch_that_does_not_divide_names_the_nearest(batch_size, fits):
    """The rows are dealt out over data x fsdp, not over tensor."""
    built = mesh.build(config.Mesh(data=2, fsdp=2, tensor=2))
    with pytest.raises(UserError, match=rf"^train.batch_size: {batch_size} is not .* = 4 of the mesh. Use {fits}\.$"):
        mesh.check_batch(built, batch_size, "train.batch_size")


def test_batch_that_divides_passes():
    """Any multiple of data x fsdp."""
    mesh.check_batch(mesh.build(config.Mesh(data=2, fsdp=2, tensor=2)), 12, "train.batch_size")
