# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A prompt in front of every text: what it does to each family, what then trains; test_peft_prompt.py has PEFT's."""

import importlib
import types

import jax
import numpy as np
import published
import pytest
import toys
from flax import nnx

from tl_jax import config, loading, pretrained
from tl_jax.config import Adapter, Experiment, Model, Phase, Plan, Train
from tl_jax.core import chain, plugins
from tl_jax.core.errors import UserError
from tl_jax.nn import prompt
from tl_jax.plan import adapters
from tl_jax.plan.resolve import resolve
from tl_jax.tasks import extractive_qa

_MODELS = {name: plugins.find("tl_jax.models", name) for name in plugins.names("tl_jax.models")}
_FAMILIES = [name for name, family in _MODELS.items() if family.INPUTS[0] == "input_ids" and name != "t5"]
_WORDS = (4, 5, 6)
# Sums of a few dozen terms in float32, in programs that differ.
_CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def drawn(name, pool=""):
    """(network, batch of 6 tokens) of a family, small, with every leaf drawn so that none hides behind a zero."""
    tiny, family = importlib.import_module(f"published.{name}"), _MODELS[name]
    kind = {"model_type": family.MODEL_TYPES[0]}
    fields, rng = family.Config.from_published({**kind, **tiny.CONFIGS[0]}).without(pool), np.random.default_rng(0)
    model = nnx.eval_shape(lambda: family.Backbone(fields, rngs=nnx.Rngs(0)))
    fill(model, rng)
    batch = getattr(tiny, "batch", published.texts)(types.SimpleNamespace(**{**vars(fields), **tiny.CONFIGS[0]}), rng)
    return model, {key: value[:, :6] for key, value in batch.items()}


def fill(model, rng):
    """Draw every leaf of an abstract network."""
    shapes = {path: leaf.shape for path, leaf in chain.split(model)[1].items()}
    chain.merge_into(model, {path: rng.normal(0, 0.5, shape).astype(np.float32) for path, shape in shapes.items()})


def outputs(model, batch):
    """As a call gives them, compiled without optimising what runs once."""
    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda: model(batch), compiler_options=quick)()


def fronted(model, batch):
    """What the network gives for texts in front of which these words stand, and what it gives with their rows as its
    prompt."""
    front = {"input_ids": np.tile(_WORDS, (3, 1)), "attention_mask": np.ones((3, 3), int)}
    front["token_type_ids"] = np.zeros((3, 3), int)
    whole = {key: np.concatenate([front[key], value], axis=1) for key, value in batch.items()}
    expected = outputs(model, whole)
    prompt.install(model, 3, nnx.Rngs(0))
    model.stem.word.prompt.rows.set_value(model.stem.word.embedding[...][np.array(_WORDS)])
    return expected, outputs(model, batch)


@pytest.mark.parametrize("name", _FAMILIES)
def test_rows_count_as_words(name):
    """With the rows of some words as its prompt a network gives what it gives for texts that begin with these words:
    positions, segments, masks and pooled features are right in every family."""
    model, batch = drawn(name, _MODELS[name].POOLS[0])
    expected, found = fronted(model, batch)
    counts = np.asarray(batch["attention_mask"]).astype(bool)
    counts = np.concatenate([np.ones((3, 3), bool), counts], axis=1)
    assert set(found) == set(expected)
    for key, value in found.items():
        theirs = expected[key]
        if key == "last_hidden_state":
            value, theirs = value[counts], theirs[counts]
        np.testing.assert_allclose(value, theirs, **_CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_words_are_predicted_of_the_text_alone(name):
    """`lm_head` gives scores for the text's own positions, so that they stand beside the labels."""
    expected, found = fronted(*drawn(name, "lm_head"))
    assert found["logits"].shape[1] == 6
    # The last text is a few words; what stands on its padding is nobody's.
    np.testing.assert_allclose(found["logits"][0], expected["logits"][0, 3:], **_CLOSE)


def test_answers_are_looked_for_in_the_text_alone():
    """So do the two scores of a token, and what says which of them count."""
    model, batch = drawn("bert", "none")
    task = extractive_qa.Task(extractive_qa.Config(), (), ())
    for name, module in nnx.eval_shape(lambda: task.stages(model.width, rngs=nnx.Rngs(1))).items():
        model.add_stage(name, module)
    fill(model, np.random.default_rng(0))
    expected, found = fronted(model, batch)
    np.testing.assert_array_equal(found["counts"], batch["attention_mask"].astype(bool))
    for key in ("start_logits", "end_logits"):
        np.testing.assert_allclose(found[key][0], expected[key][0, 3:], **_CLOSE)


def prompted(plan):
    """A small BERT with the plan's prompt."""
    model = nnx.eval_shape(toys.small_bert)
    prompt.install(model, plan.prompt, nnx.Rngs(0))
    return model


def test_rows_are_drawn_as_in_peft():
    """float32 from N(0, 1), of which 800 have a mean below 0.15 and a deviation within 0.1 of 1 (four errors each)."""
    rows = np.asarray(prompted(Plan(prompt=100)).stem.word.prompt.rows[...])
    assert rows.shape == (100, 8) and rows.dtype == np.float32
    assert abs(rows.mean()) < 0.15 and abs(rows.std() - 1) < 0.1


def test_prompt_and_head_train():
    """And nothing else; rules of the network do not reach the rows, rules that name them do."""
    plan = Plan(prompt=4, lr=((".*", 0.5), (".*/prompt/.*", 30.0)))
    chains, params = chain.split(prompted(plan))
    found = resolve(plan, chains, params, 0.1)
    assert found.lr == {"stem/word/prompt/rows": 30.0, "head/kernel": 0.5, "head/bias": 0.5}
    assert found.cut == {"": 0} and adapters.is_adapter("stem/word/prompt/rows")


def test_a_phase_that_names_no_prompt_freezes_it():
    """The blocks behind it are then below the cut."""
    chains, params = chain.split(prompted(Plan(prompt=4)))
    found = resolve(Plan("linear_probe"), chains, params, 0.0)
    assert set(found.trained) == {"head/kernel", "head/bias"} and found.cut[""] > 2


@pytest.mark.parametrize("build", [toys.Net, toys.TwoChains, lambda: drawn("t5")[0]])
def test_networks_that_read_no_single_text_are_refused(build):
    """In one line, and they stay as they are."""
    model = build()
    kind = type(model)
    with pytest.raises(UserError, match=r"plan\.prompt: a prompt stands before the words of a text"):
        prompt.install(model, 4, nnx.Rngs(0))
    assert type(model) is kind and prompt.of(model) is None


def test_the_prompt_takes_positions():
    """A text that fits alone and not behind the prompt is refused, with both numbers."""
    model, batch = drawn("bert", "cls")
    model.begin("", batch, {})
    prompt.install(model, 7, nnx.Rngs(0))
    with pytest.raises(UserError, match="with a prompt of 7 has 13 tokens, the network has 12 positions"):
        model.begin("", batch, {})


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"plan": Plan(prompt=0)}, "plan.prompt must be at least 1"),
        ({"plan": Plan(prompt=2, preset="lora")}, "a prompt or adapters, not both"),
        ({"plan": Plan(prompt=2, adapters=((".*", Adapter()),))}, "a prompt or adapters, not both"),
        ({"plan": Plan(prompt=2), "phases": (Phase(Plan(prompt=3), epochs=1),)}, "or another prompt"),
        (
            {"pretrain": Experiment(model=Model("x"), train=Train(steps=1), plan=Plan(prompt=2))},
            "pretrain.plan.prompt cannot be folded",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(changes, message):
    """By name, before anything is built."""
    with pytest.raises(UserError) as error:
        config.validate(Experiment(model=Model("x"), train=Train(steps=1), **changes))
    assert message in str(error.value)


def test_what_a_prompt_cannot_do_is_refused(tmp_path):
    """It is folded into no kernel, has no place in a published file, and does not write."""
    fields = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_layer": 1, "n_head": 2}
    checkpoint = loading.from_config({**fields, "vocab_size": 9, "n_positions": 12}).for_pool("lm_head")
    loaded = loading.load(checkpoint, model := loading.abstract(checkpoint))
    chain.merge_into(model, loaded.params)
    prompt.install(model, 2, nnx.Rngs(0))
    network = pretrained.Pretrained(model, checkpoint, loaded, checkpoint.published)
    with pytest.raises(UserError, match=r"no kernel can take in a prompt.*--format=peft"):
        network.merge()
    with pytest.raises(UserError, match="no place for adapters or a prompt"):
        network.save(tmp_path / "out")
    with pytest.raises(UserError, match="writing behind one is not built"):
        network.generate({"input_ids": np.array([[1, 2]])}, max_new_tokens=2)
    assert not (tmp_path / "out").exists()
