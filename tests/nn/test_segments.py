# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several texts in a row: each is to the network what it is alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import writers

import tl_jax
from tl_jax import loading
from tl_jax.core import chain
from tl_jax.core.chain import EVAL
from tl_jax.core.errors import UserError
from tl_jax.nn import prompt, segments
from tl_jax.tasks.language_model import Config, Task

LENGTHS = (7, 4, 1, 5)
NAMES = ["GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM"]
LM = Task(Config(), (), ())


def texts() -> list[np.ndarray]:
    """int[t], in the vocabulary of `writers`."""
    return [np.random.default_rng(n).integers(4, 40, length) for n, length in enumerate(LENGTHS)]


def row(parts: list[np.ndarray], padding: int = 3) -> dict[str, np.ndarray]:
    """One row of these texts and some padding."""
    numbers = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts])
    found = {"input_ids": np.concatenate(parts), "segments": numbers}
    return {name: np.pad(values, (0, padding))[None] for name, values in found.items()}


def spans(parts) -> list[slice]:
    """Where each text stands in the row."""
    ends = np.cumsum([len(part) for part in parts])
    return [slice(end - len(part), end) for part, end in zip(parts, ends)]


def test_masks_and_places_by_hand():
    """Texts apart, padding apart from them, and places that begin anew."""
    numbers = jnp.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 0, 0]])
    np.testing.assert_array_equal(segments.places(numbers), [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 0, 1]])
    blocks = np.zeros((6, 6), bool)
    blocks[:3, :3] = blocks[3:5, 3:5] = blocks[5, 5] = True
    np.testing.assert_array_equal(segments.alike(numbers)[0], blocks)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_row_are_those_of_its_texts(tmp_path, name):
    """Token by token: learned places, rotary ones, and a window of four tokens."""
    network = tl_jax.load_pretrained(writers.publish(name, tmp_path)[1])
    parts = texts()
    together = network(row(parts))["logits"][0]
    for part, span in zip(parts, spans(parts)):
        alone = network({"input_ids": part[None]})["logits"][0]
        # Float32 sums of 16 to 64 terms in another order, and of Llama angles that are larger by the text's place.
        np.testing.assert_allclose(together[span], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES[:2])
def test_gradients_of_a_row_are_those_of_its_texts(tmp_path, name):
    """Of the sum of the words' losses, in every parameter."""
    network = tl_jax.load_pretrained(writers.publish(name, tmp_path)[1])
    model, (chains, params), parts = network.model, chain.split(network.model), texts()

    def slopes(batch, labels):
        def loss(params):
            outputs, _ = chain.run_chains(model, chains, params, batch, lambda _: EVAL)
            losses, metrics = LM.loss(outputs, {"label": labels})
            return jnp.sum(losses * metrics["words"])

        return jax.jit(jax.grad(loss))(params)

    def labels(part):
        return np.append(part[1:], -1)

    together = slopes(row(parts), np.pad(np.concatenate([labels(p) for p in parts]), (0, 3), constant_values=-1)[None])
    alone = [slopes({"input_ids": part[None]}, labels(part)[None]) for part in parts]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *alone)
    largest = max(np.abs(leaf).max() for leaf in summed.values())
    for path, expected in summed.items():
        # Float32 sums over the words of all texts in another order.
        np.testing.assert_allclose(together[path], expected, rtol=0, atol=1e-5 * largest, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_changes_no_other(tmp_path, name):
    """Not by a bit: another second text leaves the logits of all others as they are."""
    network = tl_jax.load_pretrained(writers.publish(name, tmp_path)[1])
    parts = texts()
    first, second = spans(parts)[:2]
    before, changed = row(parts), row(parts)
    changed["input_ids"][:, second] = 43 - changed["input_ids"][:, second]
    before, after = (np.asarray(network(batch)["logits"][0]) for batch in (before, changed))
    rest = slice(second.stop, sum(LENGTHS))
    np.testing.assert_array_equal(after[first], before[first])
    np.testing.assert_array_equal(after[rest], before[rest])
    assert (np.abs(after[second] - before[second]).max(axis=1) > 0).all()


def test_transformers_gives_the_same_logits_for_a_row(tmp_path):
    """GPT-2 told the places and who sees whom, in its own form."""
    import torch

    reference, folder = writers.publish("GPT2LMHeadModel", tmp_path, attn_implementation="eager")
    batch = row(texts())
    length = batch["segments"].shape[1]
    seen = (batch["segments"][:, :, None] == batch["segments"][:, None, :]) & np.tri(length, dtype=bool)
    places = np.concatenate([np.arange(n) for n in (*LENGTHS, 3)])[None]
    # What is added to scores.
    mask = torch.from_numpy(np.where(seen, 0.0, np.finfo(np.float32).min).astype(np.float32))[:, None]
    with torch.no_grad():
        expected = reference(
            torch.from_numpy(batch["input_ids"]), attention_mask=mask, position_ids=torch.from_numpy(places)
        ).logits
    # Float32 sums of 16 to 64 terms in another order.
    np.testing.assert_allclose(tl_jax.load_pretrained(folder)(batch)["logits"], expected, atol=1e-4, rtol=1e-4)


def test_rows_are_refused_where_their_texts_cannot_be_told_apart(tmp_path):
    """Beside a mask, in front of one answer a row, behind a prompt, and where a text is to go on."""
    network = tl_jax.load_pretrained(writers.publish("GPT2LMHeadModel", tmp_path)[1])
    batch = row(texts())
    with pytest.raises(UserError, match="has segments and attention_mask"):
        network({**batch, "attention_mask": np.ones_like(batch["segments"])})
    with pytest.raises(UserError, match="several texts in a row, of which one can go on"):
        network.generate(batch, max_new_tokens=2)
    with pytest.raises(UserError, match="the network's head gives one answer a row"):
        segments.read(batch, "head")
    checkpoint = loading.from_config({"model_type": "gpt2", **writers.NETS["GPT2LMHeadModel"]}).for_pool("lm_head")
    prompted = loading.abstract(checkpoint, lambda model, rngs: prompt.install(model, 2, rngs))
    with pytest.raises(UserError, match="a prompt stands before one"):
        prompted.begin("", batch, {})
