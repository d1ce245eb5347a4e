# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Collectives of a compiled program: counted by hand, in a text and in real programs on eight devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tl_jax.config import Mesh
from tl_jax.parallel import mesh as meshes
from tl_jax.parallel.collectives import Traffic, counted

_TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%piece.1 (p: bf16[4]) -> bf16[16] {
  ROOT %gather.1 = bf16[16]{0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%piece.2 (p: bf16[4]) -> bf16[16] {
  ROOT %gather.2 = bf16[16]{0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %reduced = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%sum
  ROOT %out = (s32[], f32[8]{0}) tuple(%i, %reduced)
}

%test (state: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %several = (f32[2,3]{1,0:T(2,128)S(1)}, /*index=1*/pred[5]{0}) all-reduce(%a, %b), channel_id=2, to_apply=%sum
  %begun = (f32[4]{0}, f32[32]{0}) all-gather-start(%c), channel_id=3, dimensions={0}
  %ended = f32[32]{0} all-gather-done(%begun)
  %moved = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%c), channel_id=4
  %one = bf16[16]{0} fusion(%c), kind=kCustom, calls=%piece.1
  %two = bf16[16]{0} fusion(%c), kind=kCustom, calls=%piece.2
  %loop = (s32[], f32[8]{0}) while(%t), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  ROOT %last = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_every_form_of_a_text_is_read():
    """Several arrays at once, asynchronous forms once and by what comes out, pieces of one channel once, a loop's as
    often as it is run."""
    assert counted(_TEXT) == {
        "all-reduce": Traffic(1 + 6, 4 * 6 + 5 + 6 * 4 * 8),
        "all-gather": Traffic(1 + 1, 4 * 32 + 2 * 16),
        "collective-permute": Traffic(1, 4 * 4),
    }


@pytest.mark.parametrize("steps", [1, 5])
def test_a_sum_over_devices_counts_as_often_as_it_is_done(steps):
    """A product over a dimension that eight devices share is summed up in every step of a loop: 16 numbers each."""
    mesh = meshes.build(Mesh(8), jax.devices()[:8])
    whole, shared = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    def program(x, kernel):
        def body(x, _):
            x = jax.lax.with_sharding_constraint(jnp.tanh(x) @ kernel, whole)
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, "data"))), None

        return jax.lax.scan(body, x, length=steps)[0].sum()

    x = jax.ShapeDtypeStruct((1, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "data")))
    kernel = jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=shared)
    found = counted(jax.jit(program).lower(x, kernel).compile().as_text())
    # And the sum at the end, one number.
    assert found == {"all-reduce": Traffic(steps + 1, 4 * (16 * steps + 1))}


def test_one_device_sends_nothing():
    """No collective, no entry."""
    assert counted(jax.jit(jnp.sum).lower(jnp.ones(4)).compile().as_text()) == {}
