# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth: rates by block, whole examples, every residual branch of every family by itself."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import toys

from tl_jax import config, loading
from tl_jax.config import Model, Plan
from tl_jax.core import chain, plugins
from tl_jax.core.chain import Mode
from tl_jax.core.errors import UserError
from tl_jax.nn.residual import drop_path, set_drop_path

# Branches of the last block, by family; of a decoder's block three.
_SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
_VIT = _SMALL | {"image_size": 8, "patch_size": 4}
_TEXT = _SMALL | {"vocab_size": 9, "max_position_embeddings": 8}
_WAVES = _SMALL | {"conv_dim": [4], "conv_stride": [5], "conv_kernel": [10], "num_conv_pos_embeddings": 4}
_WHISPER = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")}
FAMILIES = {
    "vit": (2, _VIT),
    "dinov2": (2, _VIT),
    "bert": (2, _TEXT),
    "deberta": (2, _TEXT),
    "llama": (2, _TEXT | {"num_key_value_heads": 1}),
    "t5": (3, {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 9}),
    "whisper": (3, _WHISPER | {"d_model": 8, "vocab_size": 9, "num_mel_bins": 4, "max_source_positions": 4}),
    "wav2vec2": (2, _WAVES | {"num_conv_pos_embedding_groups": 2}),
    "swin": (2, {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 16}),
    "convnext": (1, {"depths": [1, 1], "hidden_sizes": [4, 8]}),
    "efficientnet": (1, {"width_coefficient": 0.25, "depth_coefficient": 1.0, "depth_divisor": 4, "in_channels": [32],
                         "out_channels": [16], "kernel_sizes": [3], "strides": [1], "num_block_repeats": [2],
                         "expand_ratios": [2], "hidden_dim": 320}),
    "mobilenet_v2": (1, {"depth_multiplier": 0.02, "depth_divisible_by": 4, "min_depth": 4}),
    "resnet": (1, {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}),
    "resnet8": (1, {"widths": [4, 4, 8]}),
    "res8": (1, {"width": 4}),
}  # fmt: skip
WITHOUT = ("ds_cnn", "mobilenet", "silero_vad", "squeezenet")
# Built of the same blocks as one above.
ALIKE = (
    "ast",
    "clip",
    "clip_text",
    "deit",
    "distilbert",
    "gpt2",
    "hubert",
    "roberta",
    "siglip",
    "siglip_text",
    "wavlm",
)


def built(family, rate, fields=None):
    """(the network with its last blocks at `rate`, no other dropout, its stages, leaves drawn anew)."""
    module = importlib.import_module(f"tl_jax.models.{family}")
    published = {"model_type": module.MODEL_TYPES[0], **(FAMILIES[family][1] if fields is None else fields)}
    checkpoint = loading.checkpoint_of(Model(family=family, config=published, drop_path=rate))
    quiet = {field.name: 0.0 for field in dataclasses.fields(checkpoint.config) if "drop" in field.name}
    quiet |= {"apply_spec_augment": False} if hasattr(checkpoint.config, "apply_spec_augment") else {}
    checkpoint = dataclasses.replace(checkpoint, config=dataclasses.replace(checkpoint.config, **quiet))
    model, rng = loading.abstract(checkpoint), np.random.default_rng(0)
    chains, params = chain.split(model)

    def drawn(path, leaf):
        leaf = jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype)
        return leaf**2 + 1 if path.endswith("/var") else leaf

    return model, chains, {path: drawn(path, leaf) for path, leaf in params.items()}


def identical(family, count):
    """A batch of one example, many times over."""
    rng, name = np.random.default_rng(0), importlib.import_module(f"tl_jax.models.{family}").INPUTS[0]
    shape = {"pixel_values": (16, 16, 3), "input_values": (60,), "input_features": (49, 40), "input_ids": (5,)}[name]
    if family in ("vit", "dinov2"):
        shape = (8, 8, 3)
    if family == "whisper":
        shape = (8, 4)
    one = rng.integers(2, 9, shape) if name == "input_ids" else rng.normal(size=shape).astype(np.float32)
    batch = {name: one, "attention_mask": np.ones(shape[:1], np.int32), "decoder_input_ids": np.arange(1, 4)}
    return {name: np.stack([value] * count) for name, value in batch.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_branch_drops_by_itself_and_whole_examples(family):
    """Of 64 equal examples the last block with a sum makes as many different ones as its branches can be there or
    not."""
    model, chains, params = built(family, 0.5)
    blocks = [stage.name for stage in list(chains.values())[-1] if "blocks/" in stage.name]
    last = [name for name in blocks if getattr(model.stage(name), "adds", True)][-1]

    def run(params):
        batch, key = identical(family, 64), jax.random.key(0)
        return chain.run_chains(model, chains, params, batch, lambda name: Mode(dropout=name == last), key)[0]

    outputs = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(params)
    found = np.asarray(outputs["last_hidden_state"]).reshape(64, -1)
    # Equal up to float32 sums, which a vectorised loop takes in another order at its end.
    assert len(np.unique((found / np.abs(found).max()).round(3), axis=0)) == 2 ** FAMILIES[family][0]


def test_every_family_is_one_or_the_other():
    """With residual branches, as itself or of blocks that another one has, or refused."""
    assert sorted((*FAMILIES, *ALIKE, *WITHOUT)) == sorted(plugins.names("tl_jax.models"))


@pytest.mark.parametrize("family", WITHOUT)
def test_a_network_without_residual_sums_is_refused(family):
    """In one line, before anything is read."""
    with pytest.raises(UserError, match="model.drop_path: this network has no residual blocks"):
        built(family, 0.1, {})


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_rates_are_those_of_timm(depth):
    """Its `calculate_drop_path_rates`, block by block."""
    model = toys.small_bert(layers=depth)
    set_drop_path(model, 0.3)
    expected = references.timm_module("layers/drop.py").calculate_drop_path_rates(0.3, depth)
    np.testing.assert_allclose([block.drop_path for block in model.blocks], expected, atol=1e-7)  # theirs are float32


def test_both_chains_begin_at_zero():
    """Encoder and decoder alike."""
    model = built("t5", 0.4)[0]
    rates = [[model.stage(name).drop_path for name in names if "blocks/" in name] for names in model.chains.values()]
    assert rates == [[0.0, 0.4], [0.0, 0.4]]


def test_without_the_field_the_checkpoint_says():
    """ConvNeXt's own rate, in the same steps; asked for, 0 is 0."""
    fields = {"model_type": "convnext", "depths": [2, 1], "hidden_sizes": [4, 8], "drop_path_rate": 0.2}
    for asked, expected in ((None, [0, 0.1, 0.2]), (0.0, [0, 0, 0]), (0.4, [0, 0.2, 0.4])):
        model = loading.abstract(loading.checkpoint_of(Model(family="convnext", config=fields, drop_path=asked)))
        np.testing.assert_allclose([block.drop_path for block in model.blocks], expected)


def test_the_expectation_is_the_branch():
    """Over many keys, to within five standard errors of a mean of 4000 draws."""
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    draws = jax.vmap(lambda key: drop_path(x, 0.3, key))(jax.random.split(jax.random.key(0), 4000))
    error = 5 * np.abs(x) * np.sqrt(0.3 / 0.7 / 4000)
    assert (np.abs(np.asarray(draws).mean(axis=0) - x) < error).all()


def test_frozen_stages_below_the_cut_draw_nothing():
    """A linear probe's logits are the same under all keys; once the last block trains, they are not."""
    model = toys.small_bert(rate=0.0)
    set_drop_path(model, 0.5)
    chains, params = chain.split(model)

    def logits(plan):
        modes = toys.objective(model, plan)[0].plan.modes
        run = jax.jit(lambda key: chain.run_chains(model, chains, params, toys.tokens(), modes.get, key)[0]["logits"])
        return [np.asarray(run(jax.random.key(number))) for number in range(2)]

    np.testing.assert_array_equal(*logits(Plan(preset="linear_probe")))
    first, second = logits(Plan(preset="last_n", n=1))
    assert (first != second).any()


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_a_rate_that_cannot_be_is_refused(rate):
    """Dropping all leaves nothing to scale."""
    exp = config.Experiment(model=Model(family="vit", drop_path=rate), train=config.Train(steps=1))
    with pytest.raises(UserError, match=f"model.drop_path is {rate}"):
        config.validate(exp)
