# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CTC: the loss of PyTorch, texts from frames, error rates, and a network that learns one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tl_jax import loading, pretrained
from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Context
from tl_jax.core.errors import UserError
from tl_jax.tasks.ctc import Config, Head, Task

CLASSES = ("<pad>", "|", "a", "b", "c")
TASK = Task(Config(), CLASSES, ("mean",))
TINY = {
    "model_type": "wav2vec2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8, 8],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def frames(text: str, length: int) -> np.ndarray:
    """Logits that are certain of these classes, `_` for the blank, and of the blank from there on."""
    ids = [CLASSES.index(c) if c != "_" else 0 for c in text.ljust(length, "_")]
    return 20 * np.eye(len(CLASSES), dtype=np.float32)[ids]


def test_losses_and_gradients_are_those_of_pytorch():
    """Texts of different length over sounds of different length: repeated symbols, one symbol, too few frames."""
    import torch

    labels = np.array([[2, 3, 4, 2], [2, 2, 3, 3], [4, 0, 0, 0], [2, 3, 3, 4], [2, 2, 2, 0]])
    counts = np.array([9, 6, 7, 4, 5])
    hidden = np.random.default_rng(0).normal(size=(5, 9, 5)).astype(np.float32)
    head = Head(5, 5, 0.0, rngs=nnx.Rngs(0))
    head.kernel[...] = jnp.eye(5)
    mask = jnp.asarray(np.arange(9) < counts[:, None], jnp.int32)

    def losses(hidden):
        outputs = head(hidden, Context({"attention_mask": mask}, {}, EVAL, None))
        return TASK.loss(outputs, {"label": jnp.asarray(labels)})

    found, metrics = losses(jnp.asarray(hidden))
    gradient = jax.grad(lambda x: losses(x)[0].sum())(jnp.asarray(hidden))
    x = torch.tensor(hidden, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        torch.log_softmax(x, -1).transpose(0, 1),
        torch.tensor(labels),
        torch.tensor(counts),
        torch.tensor((labels > 0).sum(axis=1)),
        reduction="none",
        zero_infinity=True,
    )
    expected.sum().backward()
    np.testing.assert_array_equal(metrics["alignable"], [1, 1, 1, 0, 1])
    # Float32 sums of logarithms in another order.
    np.testing.assert_allclose(found, expected.detach(), atol=1e-4)
    np.testing.assert_allclose(gradient, x.grad, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "text"), [("aab_b", "abb"), ("a|_|b", "a b"), ("||a||", "a"), ("_____", ""), ("aaaaa", "a")]
)
def test_greedy_decoding_drops_repetitions_and_blanks(said, text):
    """A blank parts two equal symbols; delimiters at the ends and in a row are no words."""
    assert TASK.texts(frames(said, 8)[None]) == [text]
    assert TASK.predictions({"logits": frames(said, 8)[None]}) == [{"text": text}]


def test_error_rates_are_shares_of_the_transcripts():
    """One of three words replaced, one missed and one made up elsewhere; resamples weigh examples."""
    logits = np.stack([frames("a|b|c", 8), frames("_", 8), frames("a|b", 8)])
    labels = np.array([[2, 1, 3, 1, 3], [4, 0, 0, 0, 0], [2, 0, 0, 0, 0]])
    weights = np.array([[1.0, 1, 1], [1, 0, 0], [0, 0, 2]])
    found = TASK.measure({"logits": logits}, labels, weights)
    np.testing.assert_allclose(found["wer"], [3 / 5, 1 / 3, 1])
    np.testing.assert_allclose(found["cer"], [(1 + 1 + 2) / 7, 1 / 5, 2])
    assert TASK.details({"logits": logits}, labels) == {"words": {"right": 3, "replaced": 1, "missed": 1, "made_up": 1}}


def test_labels_that_are_no_texts_are_refused():
    """None, symbols that do not exist, a gap, an empty text."""
    TASK.check_labels(np.array([[2, 1, 3], [4, 0, 0]]), ["x", "y"], "data")
    with pytest.raises(UserError, match="no transcripts"):
        TASK.check_labels(None, [], "data")
    for row, message in (([2, 5, 0], "y has symbols outside 0 to 4"), ([2, 0, 3], "y is no"), ([0, 0, 0], "y is no")):
        with pytest.raises(UserError, match=message):
            TASK.check_labels(np.array([[2, 1, 3], row]), ["x", "y"], "data")


def test_a_network_learns_to_write_what_it_hears(tmp_path):
    """Two sounds, one padded, until both texts are right; saved, it is a CTC network of transformers."""
    checkpoint = loading.from_config(TINY).for_pool(TASK.pool)
    model = loading.abstract(checkpoint, loading.adder(TASK))
    loaded = loading.load(checkpoint, model, loading.adder(TASK), key=jax.random.key(0))
    chains, params = chain.split(model)[0], loaded.params
    mask = np.arange(300) < np.array([[300], [200]])
    batch = {
        "input_values": (np.random.default_rng(0).normal(size=mask.shape) * mask).astype(np.float32),
        "attention_mask": mask.astype(np.int32),
        "label": np.array([[2, 1, 3], [3, 3, 0]]),
    }
    tx = optax.adam(0.01)

    def forward(params):
        return chain.run_chains(model, chains, params, batch, lambda _: EVAL)[0]

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: TASK.loss(forward(p), batch)[0].mean())(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state = tx.init(params)
    for _ in range(150):
        params, state, loss = step(params, state)
    logits = np.asarray(forward(params)["logits"])
    assert float(loss) < 0.1 and TASK.texts(logits) == ["a b", "bb"]

    import torch
    import transformers

    chain.merge_into(model, params)
    published = {**TINY, **TASK.published()}
    pretrained.Pretrained(model, checkpoint, loaded, published).save(tmp_path / "saved")
    reference, info = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        inputs = {name: torch.from_numpy(batch[name]) for name in ("input_values", "attention_mask")}
        expected = reference.eval()(**inputs).logits.numpy()
    real = logits[..., 1] > -1e8
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-3)
