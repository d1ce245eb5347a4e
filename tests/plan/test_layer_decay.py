# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rates that fall towards the first stage: those of `timm`, parameter by parameter, and a geometric series."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import toys

from tl_jax import loading
from tl_jax.config import Plan
from tl_jax.core import chain
from tl_jax.plan import presets
from tl_jax.plan.resolve import resolve
from tl_jax.report import plan as report
from tl_jax.weights.rules import Rule, dense, norms, split_rows

_VIT = {"num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 12, "patch_size": 4}
_SWIN = {
    "num_classes": 3,
    "embed_dim": 8,
    "depths": [2, 1, 2],
    "num_heads": [2, 2, 4],
    "img_size": 32,
    "window_size": 2,
}
NETWORKS = {
    "vit": {"architecture": "vit_tiny_patch16_224", "model_args": _VIT},
    "vit_norm_behind_mean": {"architecture": "vit_tiny_patch16_224", "model_args": _VIT | {"global_pool": "avg"}},
    "deit": {"architecture": "deit_tiny_distilled_patch16_224", "model_args": _VIT},
    "convnext": {
        "architecture": "convnext_tiny",
        "model_args": {"num_classes": 3, "depths": [1, 2, 1, 2], "dims": [8, 12, 16, 20]},
    },
    "swin": {"architecture": "swin_tiny_patch4_window7_224", "model_args": _SWIN},
    "resnet": {
        "architecture": "resnet50",
        "model_args": {"num_classes": 3, "channels": [8, 12, 16, 20], "layers": [1, 2, 1, 2]},
    },
    "efficientnet": {"architecture": "efficientnet_b0", "model_args": {"num_classes": 3}},
}
# The same network in the fields of `transformers`, and its names in `timm`, which the family does not read.
_AS_SWIN = {name: _SWIN[name] for name in ("embed_dim", "depths", "num_heads", "window_size")}
_BLOCK, _TIMM, _QKV = "blocks/{b}", "layers.{s}.blocks.{l}", ("query", "key", "value")
SWIN = (
    *dense((("patch_embed.proj", "stem/patch"), (f"{_TIMM}.attn.proj", f"{_BLOCK}/attn/out"), ("head.fc", "head"))),
    *dense(((f"{_TIMM}.mlp.fc1", f"{_BLOCK}/mlp/up"), (f"{_TIMM}.mlp.fc2", f"{_BLOCK}/mlp/down"))),
    *norms(
        (("patch_embed.norm", "stem/norm"), ("norm", "norm"), ("layers.{s}.downsample.norm", "blocks/{b}/merge/norm"))
    ),
    *norms(((f"{_TIMM}.norm1", f"{_BLOCK}/attn_norm"), (f"{_TIMM}.norm2", f"{_BLOCK}/mlp_norm"))),
    *(
        Rule(f"{_TIMM}.attn.qkv.{theirs}", tuple(f"{_BLOCK}/attn/{name}/{ours}" for name in _QKV), split_rows(3))
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    ),
    *dense((("layers.{s}.downsample.reduction", "blocks/{b}/merge/reduction"),))[:1],
    Rule(f"{_TIMM}.attn.relative_position_bias_table", f"{_BLOCK}/attn/position/embedding", split_rows(1)),
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Of every network and parameter, by `timm`'s names: multiple of the rate, and weight decay."""
    folder = tmp_path_factory.mktemp("groups")
    program = pathlib.Path(__file__).parents[1] / "models" / "timm_reference.py"
    command = [sys.executable, program, "groups", folder, json.dumps(NETWORKS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in NETWORKS}


class Distilled(toys.Head):
    """A stage with the leaves of both heads."""

    def __init__(self, *, rngs):
        self.cls, self.distillation = toys.Head(4, 3, rngs=rngs), toys.Head(4, 3, rngs=rngs)


def planned(name: str, plan: Plan):
    """(every leaf by path, the plan in full, rules from `timm`'s names to paths, values of their placeholders)."""
    published = {"model_type": "swin", **_AS_SWIN} if name == "swin" else NETWORKS[name]
    checkpoint = loading.from_config(published)
    checkpoint = checkpoint.for_pool(checkpoint.family.POOLS[-1] if name != "deit" else "cls")

    def add_head(model, rngs):
        model.add_stage("head", Distilled(rngs=rngs) if name == "deit" else toys.Head(4, 3, rngs=rngs))

    model = loading.abstract(checkpoint, add_head)
    chains, params = chain.split(model)
    rules = SWIN if name == "swin" else checkpoint.family.SOURCES["timm"].rules
    spared = getattr(checkpoint.family, "NO_DECAY", ())
    return params, resolve(plan, chains, params, 0.05, None, spared), rules, checkpoint.config.indices()


@pytest.mark.parametrize("name", NETWORKS)
def test_rates_and_decays_are_those_of_timm(theirs, name):
    """`param_groups_layer_decay` with the network's own groups and list of what is spared: every parameter of it."""
    params, found, rules, indices = planned(name, Plan(preset="full", layer_decay=0.7))
    expected = theirs[name]
    by_path = {}
    for rule in [row for template in rules for row in template.expand(indices)]:
        named = [expected[tensor] for tensor in rule.tensors if tensor in expected]
        by_path |= {path: named[0] for path in rule.params if named and path in params}
    assert by_path.keys() == set(found.trained), "a parameter was not compared"
    assert len({rate for rate, _ in by_path.values()}) >= 4
    for path, (rate, decay) in by_path.items():
        np.testing.assert_allclose(
            found.lr[path], rate, rtol=1e-12, err_msg=path
        )  # powers, multiplied in another order
        assert found.decay[path] == decay, path


def test_lowest_lr_is_a_geometric_series():
    """The stem has the share that was asked for, the head the whole rate, each block the same multiple of the next:
    NumPy's `geomspace` over the groups, as fastai spreads `slice(low, high)`."""
    chains, params = chain.split(toys.small_bert(layers=3))
    found = resolve(Plan(preset="full", lowest_lr=0.01), chains, params, 0.0)
    stages = ("stem/word", "blocks/0/mlp/up", "blocks/1/mlp/up", "blocks/2/mlp/up", "head")
    rates = [next(rate for path, rate in found.lr.items() if path.startswith(stage)) for stage in stages]
    np.testing.assert_allclose(rates, np.geomspace(0.01, 1, 5), rtol=1e-12)


def test_the_plan_shows_rate_and_decay_by_stage():
    """In the table that a person reads."""
    chains, params = chain.split(toys.small_bert(layers=1))
    table = report.by_stage(resolve(Plan(preset="full", layer_decay=0.5), chains, params, 0.05), chains, params)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    columns = [rows[0].index(name) for name in ("stage", "rate", "decay")]
    shown = {row[columns[0]]: (row[columns[1]], row[columns[2]]) for row in rows[2:]}
    assert shown["stem"] == ("0.25", "0 to 0.05") and shown["blocks/0"][0] == "0.5" and shown["head"][0] == "1"


def test_depths_of_a_norm_behind_the_last_block():
    """With that block, as `timm` has it; what pools or predicts counts from 0."""
    stages = ("stem", "blocks/0", "blocks/1", "norm", "pooler", "head")
    assert list(presets.depths(stages).values()) == [3, 2, 1, 1, 0, 0]
