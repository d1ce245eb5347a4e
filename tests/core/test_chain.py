# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Stages run by themselves are the module run whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Carry, Context, Mode

_DROPOUT = Mode(dropout=True)


class _Mask(nnx.Module):
    """A stage whose output is its dropout mask."""

    def __call__(self, x, context):
        return x * 0 + jax.random.bernoulli(context.key, 0.5, x.shape)


def masks(first: int, count: int, key=None):
    """The mask that each of `count` consecutive stages draws, the first being number `first`."""
    found = []
    for number in range(first, first + count):
        graphdef = nnx.graphdef(_Mask())
        stages = [chain.Stage(f"blocks/{number}", graphdef, ())]
        carry = Carry(np.zeros(64, np.float32), {}, {})
        key = jax.random.key(0) if key is None else key
        found.append(np.asarray(chain.run_stages(stages, {}, carry, lambda _: _DROPOUT, key, number)[0].x))
    return found


def test_stages_one_by_one_equal_the_modules_called_by_hand():
    """BERT through its stages' own arrays, and through the same modules in a row."""
    model, batch = toys.small_bert(rate=0.0), toys.tokens()
    context = Context({"attention_mask": batch["attention_mask"]}, {}, EVAL, None)
    x = {"input_ids": batch["input_ids"], "token_type_ids": np.zeros_like(batch["input_ids"])}
    for module in (model.stem, *model.blocks, model.pooler, model.head):
        x = module(x, context)

    chains, params = chain.split(model)
    carry = model.begin("", batch, {})
    for stage in chains[""]:
        carry, mutable = chain.run_stage(stage, params, carry, EVAL, None)
        assert mutable == {}
    np.testing.assert_array_equal(carry.x["logits"], x["logits"])
    np.testing.assert_array_equal(model(batch)["logits"], x["logits"])


def test_split_names_every_leaf_once():
    """Paths are those of the module, and running statistics are told apart."""
    model = toys.Net(blocks=2)
    chains, params = chain.split(model)
    whole = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert set(params) == whole == {path for stage in chains[""] for path in stage.paths()}
    stats = {path for stage in chains[""] for path in stage.stats()}
    assert stats == {path for path in whole if path.endswith(("norm/mean", "norm/var"))} and len(stats) == 6


def test_blocks_of_one_kind_share_their_definition():
    """What makes stacking possible: equal blocks have equal graph definitions."""
    _, first, second, *_ = chain.split(toys.small_bert(layers=2))[0][""]
    assert first.graphdef == second.graphdef and first.leaves == second.leaves


def test_every_stage_draws_its_own_mask():
    """Stages of one kind differ; a stage draws the same again from the same key, another from another."""
    drawn = masks(0, 4)
    assert len({mask.tobytes() for mask in drawn}) == 4
    np.testing.assert_array_equal(drawn, masks(0, 4))
    assert (masks(1, 1, jax.random.key(1))[0] != drawn[1]).any()


def test_masks_do_not_change_when_the_run_begins_later():
    """The key goes by a stage's number in the whole model."""
    np.testing.assert_array_equal(masks(0, 4)[2:], masks(2, 2))


def test_a_stage_without_dropout_sees_no_key():
    """EVAL gives None, whatever key the step has."""
    stage = chain.split(toys.Net(blocks=2, rate=0.9))[0][""][0]
    params = chain.split(toys.Net(blocks=2))[1]
    carry = Carry(np.ones((2, 4), np.float32), {}, {})
    plain, _ = chain.run_stage(stage, params, carry, EVAL, jax.random.key(0))
    drawn, _ = chain.run_stage(stage, params, carry, _DROPOUT, jax.random.key(0))
    assert (np.asarray(plain.x) != 0).all() and (np.asarray(drawn.x) == 0).any()


def test_statistics_come_back_only_where_they_follow():
    """The mode of each stage decides; the parameters handed in stay as they are."""
    model = toys.Net(blocks=2)
    chains, params = chain.split(model)
    before = {path: np.array(leaf) for path, leaf in params.items()}
    modes = {"stem": EVAL, "blocks/0": Mode(batch_stats=True), "blocks/1": EVAL, "head": EVAL}
    _, mutable = chain.run_chains(model, chains, params, toys.vectors(), modes.__getitem__)
    assert set(mutable) == {"blocks/0/norm/mean", "blocks/0/norm/var"}
    assert (np.asarray(mutable["blocks/0/norm/mean"]) != before["blocks/0/norm/mean"]).all()
    for path in before:
        np.testing.assert_array_equal(params[path], before[path])


def test_dtype_casts_parameters_but_no_statistics():
    """bfloat16 inside, float32 running statistics."""
    model = toys.Net(blocks=2)
    chains, params = chain.split(model)
    seen = []

    class Spy(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(np.ones(2, np.float32))
            self.mean = nnx.BatchStat(np.ones(2, np.float32))
            self.count = nnx.Param(np.ones(2, np.int32))

        def __call__(self, x, context):
            seen.extend(leaf[...].dtype.name for leaf in (self.kernel, self.mean, self.count))
            return x

    model.add_stage("spy", Spy())
    chains, params = chain.split(model)
    chain.run_stage(chains[""][-1], jax.tree.map(jax.numpy.asarray, params), Carry(0, {}, {}), EVAL, None, "bfloat16")
    assert seen == ["bfloat16", "float32", "int32"]


def test_add_stage_appends_to_the_last_chain():
    """A head comes after the decoder, and another stage after the head."""
    model = toys.TwoChains()
    model.add_stage("head", toys.Head(4, 3, rngs=nnx.Rngs(0)))
    assert model.chains == {"encoder": ("encoder/0", "encoder/1"), "decoder": ("decoder/0", "decoder/1", "head")}
    assert set(model({"x": np.ones((2, 4)), "y": np.ones((2, 4))})) == {"logits"}


def test_merge_into_fills_every_leaf():
    """Other arrays by path, read back from the module and seen in its output; abstract leaves are filled too."""
    model, batch = toys.Net(), toys.vectors()
    _, params = chain.split(model)
    other = {path: np.asarray(leaf) * 2 + 1 for path, leaf in params.items()}
    for target in (model, nnx.eval_shape(toys.Net)):
        chain.merge_into(target, other)
        for path, leaf in chain.split(target)[1].items():
            np.testing.assert_array_equal(leaf, other[path])
    found = nnx.eval_shape(toys.Net)
    chain.merge_into(found, other)
    np.testing.assert_array_equal(found(batch)["logits"], model(batch)["logits"])


def test_merge_into_wants_every_leaf():
    """A path that is not there is no silent default."""
    model = toys.Net()
    _, params = chain.split(model)
    del params["head/kernel"]
    with pytest.raises(KeyError, match="head/kernel"):
        chain.merge_into(model, params)


class _Tied(chain.Backbone):
    """x -> x E -> (x E) E', where the second stage has the first one's matrix."""

    class Down(nnx.Module):
        def __init__(self):
            self.matrix = nnx.Param(jnp.arange(6.0).reshape(2, 3))

        def __call__(self, x, context):
            return x @ self.matrix[...]

    class Up(Down):
        def __init__(self):
            super().__init__()
            self.matrix[...] = jnp.zeros((2, 3))
            self.tied = nnx.static({"matrix": "stem/matrix"})

        def __call__(self, x, context):
            return x @ self.matrix[...].T

    def __init__(self):
        self.stem, self.head = self.Down(), self.Up()
        self.chains = nnx.static({"": ("stem", "head")})

    def begin(self, name, batch, done):
        return Carry(batch["x"], {}, {})


def test_a_tied_leaf_is_one_parameter():
    """Its owner's: used by both stages, with the sum of both gradients, and put back into both modules."""
    model, x = _Tied(), jnp.array([[1.0, 2.0]])
    chains, params = chain.split(model)
    assert set(params) == {"stem/matrix"} and chains[""][1].paths() == ()
    matrix = params["stem/matrix"]

    def total(params):
        return chain.run_chains(model, chains, params, {"x": x}, lambda _: EVAL)[0]["last_hidden_state"].sum()

    np.testing.assert_allclose(total(params), (x @ matrix @ matrix.T).sum())
    expected = jax.grad(lambda m: (x @ m @ m.T).sum())(matrix)
    np.testing.assert_allclose(jax.grad(total)(params)["stem/matrix"], expected)
    chain.merge_into(model, {"stem/matrix": matrix + 1})
    np.testing.assert_array_equal(model.head.matrix[...], matrix + 1)
