# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Writing: word for word what `transformers` writes, from a memory that changes nothing and saves what it should."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import writers

import tl_jax
from tl_jax import decoding
from tl_jax.core.errors import UserError
from tl_jax.decoding import Options
from tl_jax.nn import memory as memories

# Where each network is drawn and which words end its texts, such that after a few words some end and some do not.
SEEDS = {"T5ForConditionalGeneration": 4}
ENDS = {
    "GPT2LMHeadModel": (2, 31),
    "LlamaForCausalLM": (14, 24),
    "T5ForConditionalGeneration": (14, 15),
    "WhisperForConditionalGeneration": (2, 4),
}
# Scores of single words differ by rounding alone: float32 sums of a few dozen terms through a few layers.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A function from a class's name to (its reference, our network), each made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            reference, _ = writers.publish(name, folder, gain=5.0, seed=SEEDS.get(name, 0))
            made[name] = reference, tl_jax.load_pretrained(folder)
        return made[name]

    return get


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ENDS)
def test_words_are_those_of_transformers(net, name, beams):
    """Token for token, texts that end early beside one that does not, behind prompts of one length."""
    reference, loaded = net(name)
    options = {"max_new_tokens": 16, "num_beams": beams, "pad_token_id": 3, "eos_token_id": list(ENDS[name])}
    batch = writers.batch(name)
    expected = writers.written(reference, batch, **options)
    ended = np.isin(expected, ENDS[name]).any(axis=1)
    assert ended.any() and not ended.all()
    if beams == 1:
        # Or a draw would decide, and equality say little.
        assert writers.margins(reference, batch, **options).min() > 10 * TOLERANCE
    np.testing.assert_array_equal(loaded.generate(batch, **options), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"length_penalty": -2.0},
        {"early_stopping": True, "length_penalty": 2.0},
        {"suppress_tokens": [25, 28, 35], "begin_suppress_tokens": [2, 4, 0, 24]},
    ],
)
def test_options_of_beams_are_those_of_transformers(net, options):
    """Each of these changes what is written."""
    name = "WhisperForConditionalGeneration"
    reference, loaded = net(name)
    batch, given = writers.batch(name), {"max_new_tokens": 16, "num_beams": 4, "pad_token_id": 3}
    given["eos_token_id"] = [2, 4, 28]
    expected = writers.written(reference, batch, **given, **options)
    plain = writers.written(reference, batch, **given)
    assert expected.shape != plain.shape or (expected != plain).any()
    np.testing.assert_array_equal(loaded.generate(batch, **given, **options), expected)


@pytest.mark.parametrize(("name", "beams"), [("GPT2LMHeadModel", 1), ("MistralForCausalLM", 2)])
def test_prompts_may_differ_in_length(net, name, beams):
    """Padded on the right, each is continued as if it were alone; learned positions, and rotary ones with windows."""
    reference, loaded = net(name)
    ids, lengths = writers.batch(name)["input_ids"], (7, 3, 5)
    mask = np.arange(7) < np.array(lengths)[:, None]
    options = {"max_new_tokens": 16, "num_beams": beams, "eos_token_id": (), "pad_token_id": 3}
    found = loaded.generate({"input_ids": ids * mask, "attention_mask": mask}, **options)
    for row, length in enumerate(lengths):
        alone = {"input_ids": ids[row : row + 1, :length]}
        expected = writers.written(reference, alone, **options | {"eos_token_id": None})
        np.testing.assert_array_equal(found[row], expected[0])


@pytest.mark.parametrize("name", [*SEEDS, "GPT2LMHeadModel", "MistralForCausalLM", "WhisperForConditionalGeneration"])
def test_a_memory_changes_no_score(net, name):
    """A prompt and then word by word: at every position the scores of the text read at once."""
    loaded = net(name)[1]
    batch = writers.batch(name)
    prompt = batch.get("decoder_input_ids", np.zeros((3, 1), int)) if name[0] in "TW" else batch["input_ids"]
    words = np.random.default_rng(1).integers(4, 40, (3, 16))
    writer = loaded._writer
    text = np.concatenate([prompt, words], axis=1)
    expected = np.asarray(loaded({**batch, writer.reads: text})["logits"])[:, prompt.shape[1] - 1 :]
    rest = {key: jnp.asarray(value) for key, value in batch.items() if key != writer.reads}
    counts = np.ones(prompt.shape, bool)
    logits, memory, done = writer._read(loaded.params, rest, prompt.astype(np.int32), counts, columns=text.shape[1])
    step = jax.jit(lambda memory, words: writer.step(loaded.params, rest, done, memory, words))
    found = [logits]
    for t in range(16):
        logits, memory = step(memory, words[:, t].astype(np.int32))
        found.append(logits)
    np.testing.assert_allclose(np.stack(found, axis=1), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_step_does_not_read_the_prompt_again(net):
    """By the count of operations: one word more behind 60, against the text of 61 at once."""
    loaded = net("GPT2LMHeadModel")[1]
    writer, ids = loaded._writer, np.ones((1, 60), np.int32)
    _, memory, done = writer._read(loaded.params, {}, ids, np.ones_like(ids, bool), columns=61)
    step = jax.jit(lambda params, memory, words: writer.step(params, {}, done, memory, words))
    whole = jax.jit(lambda params, ids: loaded._forward(params, {"input_ids": ids})["logits"])

    def flops(function, *args):
        return function.lower(*args).compile().cost_analysis()["flops"]

    one = flops(step, loaded.params, memory, jnp.ones(1, jnp.int32))
    assert one < flops(whole, loaded.params, jnp.ones((1, 61), jnp.int32)) / 20


def test_stories260k_writes_the_story_of_transformers(shared_data):
    """Real weights, 150 words from the token that begins a text."""
    from transformers import LlamaForCausalLM

    folder = shared_data / "weights" / "stories260k_llama"
    batch, options = {"input_ids": np.array([[1]])}, {"max_new_tokens": 150, "pad_token_id": 0}
    expected = writers.written(LlamaForCausalLM.from_pretrained(folder).eval(), batch, **options)
    assert len(set(expected[0].tolist())) > 50
    np.testing.assert_array_equal(tl_jax.load_pretrained(folder).generate(batch, **options), expected)


def test_enough_beams_find_the_best_text():
    """Of all texts of up to 3 of 3 words, one of which ends, against trying every one; the score of a word depends on
    the two before it, which only the memory tells."""
    chances = np.random.default_rng(0).dirichlet(np.ones(3), (4, 4)).astype(np.float32)
    table = jnp.log(chances)

    def step(memory, words_B):
        before_B = memory.grown["last"]
        return table[before_B, words_B], memory._replace(grown={"last": words_B})

    rows = jnp.arange(2)
    memory = memories.empty(2, 1)._replace(grown={"last": rows})
    options = Options(max_new_tokens=3, num_beams=9, length_penalty=0.0, eos=(2,), pad=9)
    found, count = jax.jit(lambda memory: decoding.beam_search(step, memory, table[3, rows], options))(memory)
    texts = [t for n in (1, 2, 3) for t in itertools.product(range(3), repeat=n) if 2 not in t[:-1]]
    for row in range(2):

        def score(text, row=row):
            before = (3, row, *text)
            return sum(np.log(chances[a, b, word]) for a, b, word in zip(before, before[1:], text))

        best = max((t for t in texts if len(t) == 3 or t[-1] == 2), key=score)
        np.testing.assert_array_equal(found[row], [*best, *[9] * (3 - len(best))])
    assert count == max(len(t[t != 9]) for t in np.asarray(found))


def test_options_come_from_the_checkpoints_files(net, tmp_path):
    """`generation_config.json` over `config.json`, and what is given over both."""
    name = "GPT2LMHeadModel"
    reference, _ = net(name)
    reference.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [31], "pad_token_id": 7}))
    loaded, batch = tl_jax.load_pretrained(tmp_path), writers.batch(name)
    expected = writers.written(reference, batch, max_new_tokens=16, eos_token_id=31, pad_token_id=7)
    assert (expected == 7).any()
    np.testing.assert_array_equal(loaded.generate(batch, max_new_tokens=16), expected)
    free = loaded.generate(batch, max_new_tokens=16, eos_token_id=())
    np.testing.assert_array_equal(free, writers.written(reference, batch, max_new_tokens=16, eos_token_id=999))
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.2}))
    with pytest.raises(UserError, match="repetition_penalty is 1.2, which is not supported"):
        loaded.generate(batch, max_new_tokens=2)


def test_what_cannot_be_written_is_refused(net, tmp_path):
    """No layer that predicts words, no prompt, padding on the left, too many words, fewer than one."""
    loaded, ids = net("GPT2LMHeadModel")[1], np.ones((2, 3), int)
    for batch, count, message in (
        ({"labels": ids}, 2, "has no input_ids"),
        ({"input_ids": ids, "attention_mask": [[0, 1, 1], [1, 1, 1]]}, 2, "on the right"),
        ({"input_ids": ids}, 62, "max_new_tokens: with them input_ids has 65 tokens, the network has 64 positions"),
        ({"input_ids": ids}, 0, "max_new_tokens: is 0"),
    ):
        with pytest.raises(UserError, match=message):
            loaded.generate(batch, max_new_tokens=count)
    with pytest.raises(UserError, match="early_stopping is 'never'"):
        loaded.generate({"input_ids": ids}, max_new_tokens=2, early_stopping="never")
    net("GPT2LMHeadModel")[0].base_model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no layer that predicts words"):
        tl_jax.load_pretrained(tmp_path).generate({"input_ids": ids}, max_new_tokens=2)
