# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Presets: what they train, and what they cannot."""

import pytest
import toys

from tl_jax.core import chain
from tl_jax.core.errors import UserError
from tl_jax.core.paths import matches
from tl_jax.plan import presets


def trained(preset, model=None, n=None):
    """The paths that the preset's patterns match."""
    chains, params = chain.split(model or toys.small_bert(layers=3))
    stages = [stage.name for members in chains.values() for stage in members]
    return matches(presets.train_patterns(preset, stages, list(params), n), params, ""), set(params)


def test_full_trains_everything():
    """Nothing is left."""
    found, everything = trained("full")
    assert found == everything


def test_linear_probe_trains_the_head():
    """Two leaves."""
    assert trained("linear_probe")[0] == {"head/kernel", "head/bias"}


@pytest.mark.parametrize("n", [1, 3])
def test_last_n_trains_blocks_and_all_that_follows(n):
    """The pooling layer and the head are after the last block."""
    found, everything = trained("last_n", n=n)
    starts = (*(f"blocks/{number}/" for number in range(3 - n, 3)), "pooler/", "head/")
    assert found == {path for path in everything if path.startswith(starts)}


def test_last_n_does_not_take_ten_for_one():
    """Block 1 of eleven is not block 10."""
    stages = [f"blocks/{number}" for number in range(12)]
    paths = [f"{stage}/kernel" for stage in stages]
    found = matches(presets.train_patterns("last_n", stages, paths, 2), paths, "")
    assert found == {"blocks/10/kernel", "blocks/11/kernel"}


def test_norm_only_trains_scales_and_their_biases():
    """And the head; no other bias."""
    found, everything = trained("norm_only")
    assert found == {path for path in everything if "norm/" in path or path.startswith("head/")}
    assert len(found) == 2 * (1 + 2 * 3) + 2


def test_norm_only_leaves_running_statistics_alone():
    """They are no parameters: `resolve` hands over what can train, and the patterns match nothing else."""
    model = toys.Net(blocks=2)
    chains, params = chain.split(model)
    stats = {path for stage in chains[""] for path in stage.stats()}
    trainable = [path for path in params if path not in stats]
    patterns = presets.train_patterns("norm_only", list(model.chains[""]), trainable)
    assert not matches(patterns, params, "") & stats


def test_bias_only_trains_biases():
    """And the whole head (BitFit; Ben Zaken et al. 2022)."""
    found, everything = trained("bias_only")
    assert found == {path for path in everything if path.endswith("/bias")} | {"head/kernel"}


@pytest.mark.parametrize(
    "preset,n,message",
    [("linear_probe", None, "has none"), ("last_n", 3, "has 0 blocks"), ("norm_only", None, "nothing to train")],
)
def test_a_preset_without_its_object_is_refused(preset, n, message):
    """No head, too few blocks, no norms."""
    with pytest.raises(UserError, match=message):
        trained(preset, toys.TwoChains(), n)


def test_depth_of_a_stage_between_blocks_is_that_of_the_next():
    """A downsampling layer belongs to the block that it feeds."""
    assert presets.depths(("stem", "blocks/0", "down", "blocks/1"))["down"] == 1


def test_depths_count_over_both_chains():
    """The decoder is nearer to the end than the encoder."""
    stages = ("encoder/stem", "encoder/blocks/0", "encoder/norm", "decoder/blocks/0", "head")
    assert list(presets.depths(stages).values()) == [3, 2, 1, 1, 0]
