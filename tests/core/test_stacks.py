# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Blocks held as one compute what they compute one by one, forwards and backwards, whatever the family."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import toys
import transformers
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Mode
from tl_jax.core.stacks import Stacks, mark
from tl_jax.nn.residual import set_drop_path

pytestmark = pytest.mark.usefixtures("one_device")

# Families whose blocks differ in what they carry along, with the fields that give them two equal ones or more.
_FAMILIES = {
    "gpt2": {},
    "convnext": {},
    "clip": {},
    "t5": {"num_layers": 3, "num_decoder_layers": 3},
    "wavlm": {"num_hidden_layers": 3},
}


def network(family: str):
    """A small network of the family, drawn, and a batch for it."""
    module, tiny = (importlib.import_module(f"{where}.{family}") for where in ("tl_jax.models", "published"))
    fields = {"model_type": module.MODEL_TYPES[0], **tiny.CONFIGS[-1], **_FAMILIES[family]}
    config, theirs = module.Config.from_published(fields), transformers.AutoConfig.for_model(**fields)
    is_image = "pixel_values" in module.INPUTS and "input_ids" not in module.INPUTS
    make = getattr(tiny, "batch", published.images if is_image else published.texts)
    return module.Backbone(config, rngs=nnx.Rngs(0)), jax.tree.map(jnp.asarray, make(theirs, np.random.default_rng(0)))


def gradients(model, chains, params, batch, mode: Mode):
    """Outputs, and the gradients of the sum of their sines."""
    key = jax.random.key(1)

    def loss(params):
        outputs, _ = chain.run_chains(model, chains, params, batch, lambda _: mode, key)
        return sum(jnp.sum(jnp.sin(x)) for x in outputs.values()), outputs

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return outputs, grads


def assert_alike(found, expected):
    """To 1e-5 of the largest: the sums of a scan's backward pass are made in another order."""
    largest = max(1.0, *(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest), found, expected)


@pytest.mark.parametrize("family", _FAMILIES)
def test_outputs_and_gradients_are_those_of_single_blocks(family):
    """With dropout where the family has any: every block draws from the key that it draws from alone."""
    model, batch = network(family)
    chains, params = chain.split(model)
    marked = mark(chains, lambda stage: None, 2)
    stacks = Stacks.of(marked)
    assert stacks
    expected = gradients(model, chains, params, batch, Mode(dropout=True))
    outputs, grads = gradients(model, marked, stacks.stacked(params), batch, Mode(dropout=True))
    assert_alike((outputs, stacks.unstacked(grads)), expected)


@pytest.mark.parametrize("remat", ["dots", "block"])
@pytest.mark.parametrize("least", [2, 99], ids=["stacked", "single"])
def test_what_is_computed_again_is_the_same(remat, least):
    """Dropout and rates of drop path that rise from block to block included."""
    model, batch = toys.small_bert(layers=3, rate=0.3), toys.tokens()
    set_drop_path(model, 0.5)
    chains, params = chain.split(model)
    marked = mark(chains, lambda stage: None, least)
    stacks = Stacks.of(marked)
    expected = gradients(model, chains, params, batch, Mode(dropout=True))
    outputs, grads = gradients(model, marked, stacks.stacked(params), batch, Mode(dropout=True, remat=remat))
    assert_alike((outputs, stacks.unstacked(grads)), expected)


@pytest.mark.parametrize("least", [2, 99], ids=["stacked", "single"])
def test_a_pass_backwards_keeps_less_the_more_is_computed_again(least):
    """What the backward pass is handed, in numbers: all of it, results of products, the blocks' inputs."""
    model, batch = toys.small_bert(layers=4, width=16, rate=0.0), toys.tokens(8, 32)
    chains, params = chain.split(model)
    marked = mark(chains, lambda stage: None, least)
    held = Stacks.of(marked).stacked(params)

    def kept(remat) -> int:
        def loss(params):
            return chain.run_chains(model, marked, params, batch, lambda _: Mode(remat=remat))[0]["logits"].sum()

        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], held)))

    everything, dots, block = kept("none"), kept("dots"), kept("block")
    assert block < 0.5 * dots < 0.5 * everything


def test_running_statistics_come_back_stacked():
    """Those of every block as that block alone would leave them."""
    model, batch = toys.Net(blocks=3), toys.vectors()
    chains, params = chain.split(model)
    marked = mark(chains, lambda stage: None, 2)
    stacks = Stacks.of(marked)

    def changed(chains, params):
        return chain.run_chains(model, chains, params, batch, lambda _: Mode(batch_stats=True))[1]

    expected, found = changed(chains, params), stacks.unstacked(changed(marked, stacks.stacked(params)))
    assert expected.keys() == found.keys()
    assert_alike(found, expected)


def test_only_equal_neighbours_are_held_as_one():
    """Two widths, and a block that is told apart, break the run."""
    model = toys.Net(blocks=5)
    chains, params = chain.split(model)
    marked = mark(chains, lambda stage: stage.name == "blocks/2", 2)
    expected = {"stem": "stem..1", "blocks/0": "stem..1", "blocks/1": "stem..1", "blocks/2": None, "head": None}
    expected |= {"blocks/3": "blocks/3..4", "blocks/4": "blocks/3..4"}
    assert {stage.name: stage.stack for stage in marked[""]} == expected
    assert not Stacks.of(mark(chains, lambda stage: stage.name, 2))


def test_owners_of_shared_leaves_stay_single():
    """A later stage reads them by the owner's path."""
    chains, _ = chain.split(toys.Net(blocks=3))
    stages = list(chains[""])
    stages[-1] = dataclasses.replace(stages[-1], tied=(("linear/kernel", "blocks/1/linear/kernel"),))
    marked = mark({"": tuple(stages)}, lambda stage: None, 2)
    assert [stage.stack for stage in marked[""]] == ["stem..0", "stem..0", None, None, None]


def test_a_state_goes_there_and_back():
    """Dicts of leaves anywhere in a tree, quantised ones too, bit for bit."""
    chains, params = chain.split(toys.small_bert(layers=3))
    stacks = Stacks.of(mark(chains, lambda stage: None, 2))
    tree = {"count": jnp.zeros(()), "slots": ({"mu": stacks.stacked(params)}, [stacks.stacked(params)])}
    single = stacks.unstacked(tree)
    assert single["slots"][0]["mu"].keys() == params.keys()
    jax.tree.map(np.testing.assert_array_equal, single["slots"][1][0], params)
    jax.tree.map(np.testing.assert_array_equal, stacks.like(single, tree), tree)


def test_numbers_by_path_become_one_a_stack_or_one_a_member():
    """Rates that fall from block to block stay as many as there are blocks."""
    chains, params = chain.split(toys.small_bert(layers=3))
    stacks = Stacks.of(mark(chains, lambda stage: None, 2))
    rates = {path: 0.5 ** int(path.split("/")[1]) if path.startswith("blocks") else 1.0 for path in params}
    found = stacks.values(rates)
    assert found["blocks/0..2/mlp/up/kernel"] == (1.0, 0.5, 0.25) and found["head/kernel"] == 1.0
    assert stacks.values(dict.fromkeys(params, 2.0))["blocks/0..2/mlp/up/bias"] == 2.0


def test_evaluation_runs_stacks_too():
    """Without dropout, as one scan: the program has one loop and no block twice."""
    model, batch = toys.small_bert(layers=6), toys.tokens()
    chains, params = chain.split(model)
    marked = mark(chains, lambda stage: None, 2)

    def count(chains, params):
        run = jax.make_jaxpr(lambda p: chain.run_chains(model, chains, p, batch, lambda _: EVAL)[0]["logits"])
        return str(run(params)).count("dot_general")

    assert count(marked, Stacks.of(marked).stacked(params)) < count(chains, params) / 3
