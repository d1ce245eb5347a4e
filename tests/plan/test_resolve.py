# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A plan made into one value per path."""

import jax
import pytest
import toys
from flax import nnx

from tl_jax.config import Plan
from tl_jax.core import chain
from tl_jax.core.chain import Mode
from tl_jax.core.errors import UserError
from tl_jax.models import resnet
from tl_jax.plan.resolve import count, resolve


def resolved(model=None, weight_decay=0.05, **plan):
    """Of a small BERT of three blocks, abstract as in the engine."""
    model = nnx.eval_shape(lambda: toys.small_bert(layers=3)) if model is None else model
    chains, params = chain.split(model)
    return resolve(Plan(**plan), chains, params, weight_decay), params


def small_resnet():
    """Stem, two blocks, pool, head, with BatchNorm everywhere but in the head."""
    config = resnet.Config(depths=(1, 1), hidden_sizes=(4, 4), embedding_size=4, layer_type="basic", stem="cifar")

    def build():
        model = resnet.Backbone(config, rngs=nnx.Rngs(0))
        model.add_stage("head", toys.Head(4, 3, rngs=nnx.Rngs(0)))
        return model

    return nnx.eval_shape(build)


def test_what_no_pattern_matches_is_frozen():
    """`trained` is what matched, in the model's order."""
    found, params = resolved(train=("head/.*", r"blocks/2/attn/(query|value)/kernel"))
    expected = {"head/kernel", "head/bias", "blocks/2/attn/query/kernel", "blocks/2/attn/value/kernel"}
    assert set(found.trained) == expected
    assert list(found.trained) == [path for path in params if path in expected]
    assert set(found.lr) == set(found.decay) == expected


def test_a_preset_comes_after_the_users_own_lists():
    """Both train."""
    found, _ = resolved(preset="linear_probe", train=("stem/norm/.*",))
    assert set(found.trained) == {"head/kernel", "head/bias", "stem/norm/scale", "stem/norm/bias"}


def test_first_match_wins_for_rates_and_decays():
    """An earlier pattern is not overridden by a later one."""
    found, _ = resolved(
        preset="full",
        lr=(("head/kernel", 10.0), ("head/.*", 3.0), (".*/bias", 2.0)),
        decay=(("head/.*", 0.3), (".*/bias", 0.2)),
    )
    assert found.lr["head/kernel"] == 10 and found.lr["head/bias"] == 3
    assert found.lr["pooler/bias"] == 2 and found.lr["pooler/kernel"] == 1
    assert found.decay["head/kernel"] == found.decay["head/bias"] == 0.3 and found.decay["pooler/bias"] == 0.2


def test_decay_spares_leaves_of_one_dimension():
    """Biases and scales get 0, matrices the optimizer's own."""
    found, params = resolved(preset="full")
    for path in found.trained:
        assert found.decay[path] == (0.05 if len(params[path].shape) > 1 else 0.0)


def test_layer_decay_by_hand():
    """0.5 once for the last of three blocks, four times for the embeddings, not at all behind the blocks; rules
    multiply."""
    found, _ = resolved(preset="full", layer_decay=0.5, lr=(("blocks/2/.*/bias", 8.0),))
    expected = {"head/kernel": 1, "pooler/kernel": 1, "blocks/2/mlp/up/kernel": 0.5, "blocks/2/mlp/up/bias": 4}
    expected |= {"blocks/1/mlp/up/kernel": 0.25, "blocks/0/mlp/up/kernel": 0.125, "stem/word/embedding": 0.0625}
    assert {path: found.lr[path] for path in expected} == expected


@pytest.mark.parametrize(
    "plan,message",
    [
        ({"train": ("heads/.*",)}, "plan.train: 'heads/.*' matches nothing"),
        ({"train": ("head",)}, "plan.train: 'head' matches nothing"),
        ({"train": ("(",)}, "no regular expression"),
        ({"preset": "full", "lr": (("nope", 1.0),)}, "plan.lr: 'nope'"),
        ({"preset": "linear_probe", "lr": (("stem/.*", 1.0),)}, "plan.lr: 'stem/"),
        ({"preset": "linear_probe", "decay": (("stem/.*", 1.0),)}, "plan.decay: 'stem/"),
        ({"preset": "linear_probe", "batchnorm": (("stem", "eval"),)}, "plan.batchnorm: 'stem'"),
        ({}, "trains nothing"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(plan, message):
    """So a renamed layer is never silently frozen; a rate for a frozen leaf is a mistake too."""
    with pytest.raises(UserError, match=message):
        resolved(**plan)


def test_batchnorm_follows_where_a_stage_trains():
    """The default: `eval` in frozen stages, `train` in the others."""
    found, _ = resolved(small_resnet(), preset="last_n", n=1)
    assert found.batchnorm == {"stem": "eval", "blocks/0": "eval", "blocks/1": "train"}
    norms = ("layers/0", "layers/1", "shortcut")
    assert set(found.moving) == {f"blocks/1/{norm}/norm/{stat}" for norm in norms for stat in ("mean", "var")}
    assert not set(found.moving) & set(found.trained)
    assert found.cut == {"": 2}


@pytest.mark.parametrize("mode", ["eval", "stats", "train"])
def test_batchnorm_mode_of_a_frozen_stage(mode):
    """`eval` leaves it below the cut; `stats` lets the statistics follow, `train` the scale and bias train too."""
    found, params = resolved(small_resnet(), preset="linear_probe", batchnorm=(("blocks/0", mode),))
    norms = {path for path in params if path.startswith("blocks/0/") and "/norm/" in path}
    stats = {path for path in norms if path.endswith(("mean", "var"))}
    head = {"head/kernel", "head/bias"}
    assert set(found.trained) == head | (norms - stats if mode == "train" else set())
    assert set(found.moving) == (set() if mode == "eval" else stats)
    assert found.cut == {"": 4 if mode == "eval" else 1}
    assert found.modes["blocks/0"] == Mode(dropout=mode != "eval", batch_stats=mode != "eval")


def test_batchnorm_of_a_trained_stage_may_keep_its_statistics():
    """`eval` where the kernels train: nothing moves but them."""
    found, _ = resolved(small_resnet(), preset="full", batchnorm=((".*", "eval"),))
    assert found.moving == () and not any(mode.batch_stats for mode in found.modes.values())
    assert "blocks/0/layers/0/norm/scale" in found.trained


def test_statistics_are_no_parameters():
    """A pattern cannot train them."""
    with pytest.raises(UserError, match="matches nothing"):
        resolved(small_resnet(), train=(".*/norm/mean",))
    found, _ = resolved(small_resnet(), preset="full")
    assert not any(path.endswith(("/mean", "/var")) for path in found.trained)


@pytest.mark.parametrize(
    "dropout,draws,below",
    [("suffix", {"pooler", "head"}, 4), ("none", set(), 4), ("all", None, 0)],
)
def test_dropout_by_stage(dropout, draws, below):
    """From the cut on, nowhere, or everywhere, which leaves nothing below the cut."""
    found, _ = resolved(train=("pooler/.*", "head/.*"), dropout=dropout)
    draws = set(found.modes) if draws is None else draws
    assert {name for name, mode in found.modes.items() if mode.dropout} == draws
    assert found.cut == {"": below}


def test_count_is_the_sum_of_sizes():
    """Of abstract leaves too."""
    found, params = resolved(preset="linear_probe")
    assert count(params, found.trained) == 8 * 3 + 3
    assert count(params, params) == sum(leaf.size for leaf in jax.tree.leaves(params))
