# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The cut: how deep it lies, and that it changes no bit."""

import jax
import numpy as np
import pytest
import toys

from tl_jax.config import Plan
from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Mode
from tl_jax.plan import cut
from tl_jax.plan.resolve import resolve


def depth(model, **plan):
    """Stages below the cut, by chain."""
    chains, params = chain.split(model)
    return resolve(Plan(**plan), chains, params, 0.0, getattr(model, "reads", None)).cut


@pytest.mark.parametrize(
    "plan,below",
    [
        ({"preset": "linear_probe"}, 5),
        ({"train": ("pooler/.*",)}, 4),
        ({"preset": "last_n", "n": 1}, 3),
        ({"preset": "last_n", "n": 3}, 1),
        ({"train": ("blocks/1/attn/query/bias", "head/.*")}, 2),
        ({"preset": "norm_only"}, 0),
        ({"preset": "full"}, 0),
        ({"preset": "linear_probe", "dropout": "all"}, 0),
    ],
)
def test_depth_in_one_chain(plan, below):
    """The stages before the first that trains or draws: stem, three blocks, pooler, head."""
    assert depth(toys.small_bert(layers=3), **plan) == {"": below}


@pytest.mark.parametrize(
    "train,below",
    [
        (("decoder/1/.*",), {"encoder": 2, "decoder": 1}),
        (("decoder/0/.*",), {"encoder": 2, "decoder": 0}),
        (("encoder/1/.*",), {"encoder": 1, "decoder": 0}),
        (("encoder/0/.*", "decoder/1/.*"), {"encoder": 0, "decoder": 0}),
    ],
)
def test_a_decoder_lies_above_the_cut_of_the_encoder_that_it_reads(train, below):
    """While any of the encoder trains, nothing of the decoder is fixed."""
    assert depth(toys.TwoChains(), train=train) == below


def test_a_chain_that_reads_no_other_has_a_cut_of_its_own():
    """Without `reads`, as in CLIP, one tower may train while the other is fixed."""
    chains, _ = chain.split(toys.TwoChains())
    found = cut.find(chains, {"encoder/0/linear/kernel"}, (), random=False, reads={})
    assert found == {"encoder": 0, "decoder": 2}


def both(model, batch, below, modes, key):
    """Outputs and statistics of the uncut run and of the cut one."""
    chains, params = chain.split(model)
    whole = chain.run_chains(model, chains, params, batch, modes, key)
    crossing = cut.run_prefix(model, chains, below, params, batch)
    return whole, cut.run_suffix(model, chains, below, crossing, params, batch, modes, key)


def assert_equal_bits(found, expected):
    """The same names and the same bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("below", range(6))
def test_cut_run_of_bert_equals_the_uncut_one(below):
    """At every depth, with dropout above the cut: same masks, same bits."""
    model = toys.small_bert(layers=3, rate=0.3)
    names = list(model.chains[""])
    modes = {name: Mode(dropout=number >= below) for number, name in enumerate(names)}
    whole, parts = both(model, toys.tokens(), {"": below}, modes.__getitem__, jax.random.key(1))
    assert_equal_bits(parts, whole)


def test_cut_run_brings_statistics_back():
    """Those of the stages above the cut that follow."""
    model = toys.Net(blocks=2)
    modes = {"stem": EVAL, "blocks/0": EVAL, "blocks/1": Mode(batch_stats=True), "head": EVAL}
    whole, parts = both(model, toys.vectors(), {"": 2}, modes.__getitem__, None)
    assert_equal_bits(parts, whole)
    assert set(parts[1]) == {"blocks/1/norm/mean", "blocks/1/norm/var"}


@pytest.mark.parametrize("below", [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)])
def test_cut_run_of_two_chains_equals_the_uncut_one(below):
    """The encoder's output reaches the decoder whether it was computed below or above the cut."""
    rng = np.random.default_rng(0)
    batch = {name: rng.normal(size=(3, 4)).astype(np.float32) for name in "xy"}
    below = dict(zip(("encoder", "decoder"), below))
    whole, parts = both(toys.TwoChains(), batch, below, lambda _: EVAL, None)
    assert_equal_bits(parts, whole)


def test_dropout_masks_above_the_cut_stay_when_it_moves():
    """Fixing the first stages, which draw nothing here, changes no mask behind them."""
    model = toys.Net(blocks=2, rate=0.5)
    chains, params = chain.split(model)
    key, batch = jax.random.key(3), toys.vectors()
    modes = {"stem": EVAL, "blocks/0": EVAL, "blocks/1": Mode(dropout=True), "head": EVAL}
    found = []
    for below in (0, 1, 2):
        crossing = cut.run_prefix(model, chains, {"": below}, params, batch)
        outputs, _ = cut.run_suffix(model, chains, {"": below}, crossing, params, batch, modes.__getitem__, key)
        found.append(np.asarray(outputs["logits"]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    modes["blocks/1"] = EVAL
    outputs, _ = cut.run_suffix(model, chains, {"": 2}, crossing, params, batch, modes.__getitem__, key)
    assert (np.asarray(outputs["logits"]) != found[0]).any()
