# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Language modelling: the loss of `transformers`, perplexity, and where the layer that predicts words comes from."""

import jax
import jax.numpy as jnp
import makers
import numpy as np
import pytest
import toys
import writers
from flax import nnx
from safetensors.numpy import load_file, save_file

import tl_jax
from tl_jax import loading
from tl_jax.config import Plan
from tl_jax.core import chain, quantized
from tl_jax.data.examples import Examples
from tl_jax.data.texts import TextTransform
from tl_jax.models import gpt2
from tl_jax.nn.words import Words
from tl_jax.tasks.language_model import Config, Task

LM = Task(Config(), (), ())


def following(ids: np.ndarray) -> np.ndarray:
    """The labels of a text: at each position the token after it, and none at the last."""
    return np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], -100)], axis=1)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "T5ForConditionalGeneration"])
def test_losses_are_those_of_transformers(tmp_path, name):
    """Example by example, the second with padding; a decoder alone, and one that an encoder tells what to write."""
    import torch

    reference, folder = writers.publish(name, tmp_path)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(3, 40, (2, 7)), (np.arange(7) < [[7], [4]]).astype(np.int64)
    wanted = np.where(mask == 1, rng.integers(3, 40, (2, 7)), -100)
    if name.startswith("T5"):
        batch = {"input_ids": ids, "attention_mask": mask}
        # What the network reads is what it is to write, one token late, after the token that begins every text.
        read = np.pad(np.where(wanted < 0, 0, wanted)[:, :-1], ((0, 0), (1, 0)))
        outputs = tl_jax.load_pretrained(folder)({**batch, "decoder_input_ids": read})
        labels, given = wanted, wanted
    else:
        batch = {"input_ids": ids, "attention_mask": mask}
        outputs = tl_jax.load_pretrained(folder)(batch)
        given = np.where(mask == 1, ids, -100)
        labels = following(given)
    losses, metrics = LM.loss(outputs, {"label": jnp.asarray(labels)})
    for row in range(2):
        tensors = {key: torch.from_numpy(value[row : row + 1]) for key, value in {**batch, "labels": given}.items()}
        with torch.no_grad():
            expected = reference(**tensors)
        # Float32 sums of a few dozen terms in another order.
        np.testing.assert_allclose(losses[row], expected.loss, rtol=1e-4)
        counts = labels[row] >= 0
        right = expected.logits[0].numpy().argmax(axis=1)[counts] == labels[row][counts]
        np.testing.assert_allclose(metrics["accuracy"][row], right.mean(), rtol=1e-6)


def small_gpt2(**sizes) -> gpt2.Backbone:
    """Abstract, of one block and one head, its embedding shared with the layer of words."""
    config = gpt2.Config(n_layer=1, n_head=1, lm_head=True, **sizes)
    return nnx.eval_shape(lambda: gpt2.Backbone(config, rngs=nnx.Rngs(0)))


def gradient(model, plan):
    """((trained, frozen), (trained, frozen, batch) -> ((loss, counted), gradients)) by its labels."""
    objective, params = toys.objective(model, plan, LM.loss)
    trained = {path: params.pop(path) for path in objective.plan.trained}

    def slopes(trained, frozen, batch):
        batch = {**batch, "label": batch["label"].at[:, -2:].set(-1)}
        crossing, key = objective.prefix(frozen, batch), jax.random.key(0)
        return jax.value_and_grad(objective.loss, has_aux=True)(trained, frozen, {}, crossing, batch, key)

    return (trained, params), slopes


def test_a_run_sees_the_loss_of_all_scores():
    """Without holding them: the same loss, metrics and gradients of a whole network."""
    model = small_gpt2(vocab_size=40, n_embd=16)
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.integers(0, 40, (2, 8))) for name in ("input_ids", "label")}
    leaves, slopes = gradient(model, Plan("full"))
    # Twice as large ones make the attention so steep that float32 loses another 1.5 digits of either gradient.
    leaves = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), leaves)
    (loss, counted), expected = jax.jit(slopes)(*leaves, batch)
    LM.arrange(model, 1)
    _, slopes = gradient(model, Plan("full"))
    (ours, found), gradients = jax.jit(slopes)(*leaves, batch)
    # Sums over words in another order.
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    for name, value in counted.metrics.items():
        np.testing.assert_allclose(found.metrics[name], value, rtol=1e-6)
    largest = max(np.abs(theirs).max() for theirs in expected.values())
    for path, theirs in expected.items():
        np.testing.assert_allclose(gradients[path], theirs, rtol=0, atol=1e-6 * largest, err_msg=path)


@pytest.mark.parametrize("tied,scale", [("stem/word/embedding", 1.0), ("stem/word/embedding", 0.25), (None, 1.0)])
def test_both_answers_of_the_layer_have_one_loss(tied, scale):
    """Scores, and the factors that a run is left: of a table shared, of one scaled as T5's, of a kernel of its own."""
    layer = Words(8, 40, tied=tied, scale=scale, kernel_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    if tied:
        layer.embedding[...] = jax.random.normal(jax.random.key(0), (40, 8))
    x, batch = jax.random.normal(jax.random.key(1), (2, 3, 8)), {"label": jnp.array([[1, 2, 3], [0, 39, -1]])}
    expected = LM.loss(layer(x, None), batch)[0]
    layer.groups = 1
    outputs = layer(x, None)
    assert "logits" not in outputs
    # Sums in another order.
    np.testing.assert_allclose(LM.loss(outputs, batch)[0], expected, rtol=1e-6)


def test_an_encoder_trains_with_its_decoder():
    """Nothing of T5 lies below the cut where all of it trains, not even a stage that shares all its leaves."""
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    checkpoint = loading.from_config({"model_type": "t5", **sizes}).for_pool("lm_head")
    batch = {name: jax.ShapeDtypeStruct((2, 8), np.int32) for name in ("input_ids", "decoder_input_ids", "label")}
    leaves, slopes = gradient(loading.abstract(checkpoint), Plan("full"))
    assert jax.eval_shape(slopes, *leaves, batch)[1].keys() == leaves[0].keys()


@pytest.mark.parametrize("plan", [Plan("full"), Plan(train=("norm/.*",)), "int8"], ids=["full", "norm", "int8"])
def test_no_step_holds_the_scores_of_all_positions(plan):
    """Temporaries of the compiled gradient are less than them, too many to be kept: 512 MiB. With a table that trains,
    is frozen, or quantised."""
    rows, time, words, width = 64, 128, 16384, 16
    model = small_gpt2(vocab_size=words, n_embd=width)
    LM.arrange(model, 1)
    batch = {name: jax.ShapeDtypeStruct((rows, time), np.int32) for name in ("input_ids", "label")}
    (trained, frozen), slopes = gradient(model, Plan(train=("norm/.*",)) if plan == "int8" else plan)
    if plan == "int8":
        table = frozen["stem/word/embedding"]
        frozen["stem/word/embedding"] = jax.eval_shape(lambda x: quantized.quantize(x, "int8", 1), table)
    compiled = jax.jit(slopes).lower(trained, frozen, batch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * time * words * 4


def test_positions_that_do_not_count_have_no_gradient():
    """Neither they nor an example of which none counts, whose loss is 0."""
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    labels = jnp.array([[1, -100, 4], [-1, -1, -1]])
    losses = LM.loss({"logits": logits}, {"label": labels})[0]
    gradient = jax.grad(lambda x: LM.loss({"logits": x}, {"label": labels})[0].sum())(logits)
    assert losses[0] > 0 and losses[1] == 0
    np.testing.assert_array_equal(np.abs(gradient).sum(axis=2) > 0, np.array(labels) >= 0)


def test_words_weigh_the_same_in_a_set():
    """Whatever the length of the text they stand in, and in how many pieces; resamples weigh texts."""
    chances = [[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], [[0.1, 0.8, 0.1], [1, 1, 1]], [[0.25, 0.5, 0.25], [1, 1, 1]]]
    labels = np.array([[0, 0], [2, -100], [0, -1]])
    losses, metrics = LM.loss({"logits": jnp.log(jnp.array(chances))}, {"label": jnp.array(labels)})
    texts = Examples(lambda i: {"text": "x"}, ["a", "b"], kind="text").windows(dict, np.array([0, 1, 1]), labels)
    found = LM.gathered({"loss": np.array(losses), **{k: np.array(v) for k, v in metrics.items()}}, texts)
    values = LM.measure(found, None, np.array([[1.0, 1], [1, 0], [0, 2]]))
    # Geometric means of 1 / chance: of 0.5 and 0.2, of 0.1 and 0.25, and of all four.
    np.testing.assert_allclose(values["perplexity"], [400 ** (1 / 4), 10**0.5, 40**0.5], rtol=1e-6)
    np.testing.assert_allclose(values["accuracy"], [1 / 4, 1 / 2, 0])
    assert found["words"].tolist() == [2, 2]


def test_texts_are_their_own_labels(tmp_path):
    """Each token's label is the next; a long text goes on in a second piece, and short ones end in -1."""
    makers.bert(tmp_path)
    transform = TextTransform(tmp_path, 6, ("input_ids", "attention_mask"))
    texts = ["word1 word2", "word1 word2 word3 word4 word5 word6"]
    found = LM.windows(Examples(lambda i: {"text": texts[i]}, ["a", "b"], kind="text"), transform)
    whole = [transform({"text": text})["input_ids"].tolist() for text in ("word1 word2", "word1 word2 word3 word4")]
    rest = transform({"text": "word5 word6"})["input_ids"].tolist()
    assert [found[i]["input_ids"].tolist() for i in range(3)] == [whole[0][:-1], whole[1][:-1], rest[:-1]]
    assert found.labels.tolist() == [[*whole[0][1:], -1, -1], whole[1][1:], [*rest[1:], -1, -1]]
    assert found.record_of.tolist() == [0, 1, 1] and found.records.keys == ["a", "b"]


def test_t5_with_a_layer_of_words_of_its_own(tmp_path):
    """As version 1.1 and Flan-T5: untied, and without the scale that the tied one has; saved bit for bit."""
    import torch

    reference, _ = writers.publish("T5ForConditionalGeneration", tmp_path / "tied", tie_word_embeddings=False)
    reference.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    reference.save_pretrained(tmp_path / "own")
    loaded = tl_jax.load_pretrained(tmp_path / "own")
    ids = np.arange(3, 10)[None]
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids), decoder_input_ids=torch.from_numpy(ids)).logits
    assert loaded.params["lm_head/kernel"].shape == (16, 40)
    found = loaded({"input_ids": ids, "decoder_input_ids": ids})["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    chain.merge_into(loaded.model, {path: jnp.array(leaf) for path, leaf in loaded.params.items()})
    loaded.save(tmp_path / "saved")
    source, saved = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "saved"))
    assert source.keys() == saved.keys() and all((source[name] == saved[name]).all() for name in source)


def test_a_tied_tensor_follows_under_all_its_names(tmp_path):
    """A file that holds the embedding again as the layer of words: kept bit for bit, and changed with the embedding."""
    _, folder = writers.publish("GPT2LMHeadModel", tmp_path / "once")
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = tl_jax.load_pretrained(folder)
    assert "lm_head/kernel" not in loaded.params
    loaded.save(tmp_path / "same")
    params = loaded.params
    chain.merge_into(loaded.model, {**params, "stem/word/embedding": params["stem/word/embedding"] + 1})
    loaded.save(tmp_path / "moved")
    same, moved = (load_file(tmp_path / name / "model.safetensors") for name in ("same", "moved"))
    for name, tensor in tensors.items():
        shift = 1 if name in ("lm_head.weight", "transformer.wte.weight") else 0
        np.testing.assert_array_equal(same[name], tensor, err_msg=name)
        np.testing.assert_array_equal(moved[name], tensor + np.float32(shift), err_msg=name)


def test_stories260k_is_sure_of_its_own_story(shared_data):
    """Real weights: the loss of the published logits."""
    folder = shared_data / "weights" / "stories260k_llama"
    reference = np.load(folder / "reference.npz")
    ids = reference["input_ids"][None]
    outputs, labels = tl_jax.load_pretrained(folder)({"input_ids": ids}), following(ids)
    scores = reference["logits"][:-1].astype(np.float64)
    expected = np.exp(np.mean(np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(scores)), ids[0, 1:]]))
    # Logits up to 20 in another order of sums.
    np.testing.assert_allclose(np.exp(LM.loss(outputs, {"label": jnp.asarray(labels)})[0]), expected, rtol=1e-3)
    assert expected < 1.6, "it wrote the story itself"
