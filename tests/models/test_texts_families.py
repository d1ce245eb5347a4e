# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Families of texts where they differ from others: real weights, positions, windows, what is refused."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tl_jax
from tl_jax import loading, pretrained
from tl_jax.core import chain
from tl_jax.core.chain import Mode
from tl_jax.core.errors import UserError
from tl_jax.models import deberta, roberta, t5
from tl_jax.nn import rope


@pytest.fixture(scope="module")
def hf():
    """(torch, transformers); imported late, because that takes seconds."""
    import torch
    import transformers

    return torch, transformers


def config_of(**fields):
    """What `config.json` says, as a family's Config."""
    return loading.from_config(fields).config


@pytest.mark.parametrize("family", ["roberta", "distilbert", "gpt2", "llama", "t5", "deberta"])
def test_bfloat16_stays_bfloat16(family):
    """One table, mask or rotation in float32 would make the rest of the network float32."""
    module, tiny = (importlib.import_module(f"{package}.{family}") for package in ("tl_jax.models", "published"))
    checkpoint = loading.from_config({"model_type": module.MODEL_TYPES[0], **tiny.CONFIGS[-1]})
    model = loading.abstract(checkpoint.for_pool(""))
    chains, params = chain.split(model)

    def forward(params, ids):
        mode, key = Mode(dropout=True), jax.random.key(0)
        return chain.run_chains(model, chains, params, {"input_ids": ids}, lambda _: mode, key, jnp.bfloat16)[0]

    found = jax.eval_shape(forward, params, jnp.ones((2, 5), jnp.int32))
    assert found["last_hidden_state"].dtype == jnp.bfloat16


def test_stories260k_gives_its_published_logits(shared_data):
    """Real weights through the tied embedding: fewer heads of keys, rotary positions, RMSNorm, a gated MLP."""
    folder = shared_data / "weights" / "stories260k_llama"
    loaded = tl_jax.load_pretrained(folder)
    reference = np.load(folder / "reference.npz")
    hidden_TD = np.asarray(loaded({"input_ids": reference["input_ids"][None]})["last_hidden_state"])[0]
    logits_TV = hidden_TD @ np.asarray(loaded.params["stem/word/embedding"]).T
    # Float32 sums of up to 172 terms in another order, through 5 layers; logits reach 20.
    np.testing.assert_allclose(logits_TV, reference["logits"], atol=2e-3)
    assert (logits_TV.argmax(axis=1) == reference["logits"].argmax(axis=1)).all()


def test_padding_leaves_the_tokens_before_it_alone(shared_data):
    """A decoder's hidden states with four tokens of padding are those without."""
    loaded = tl_jax.load_pretrained(shared_data / "weights" / "stories260k_llama")
    ids = np.arange(1, 13)[None]
    mask = (np.arange(12) < 8).astype(np.int32)[None]
    padded = loaded({"input_ids": ids, "attention_mask": mask})["last_hidden_state"][:, :8]
    alone = loaded({"input_ids": ids[:, :8]})["last_hidden_state"]
    # Sums of other lengths may be taken in another order.
    np.testing.assert_allclose(padded, alone, atol=1e-5)


ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn whole": {"factor": 4.0, "original_max_position_embeddings": 64, "truncate": False, "attention_factor": 0.8},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ROPES)
def test_rotary_tables_are_those_of_transformers(hf, name, old):
    """Every way to stretch them, in the present form of `config.json` and in the older one."""
    torch, transformers = hf
    kind = {"rope_type": name.split()[0], **ROPES[name]}
    fields = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 256}
    given = {"rope_parameters": {"rope_theta": 5000.0, **kind}}
    reference = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
        transformers.LlamaConfig(**fields, **given)
    )
    expected = reference(torch.zeros(1, 256, 64), torch.arange(256)[None])
    if old:
        given = {"rope_theta": 5000.0, "rope_scaling": None if name == "default" else kind}
    config = config_of(model_type="llama", **fields, **given)
    for found, table in zip(rope.tables(config.rope, config.head_width, 256), expected):
        # Float32 angles of up to 256 radians.
        np.testing.assert_allclose(found, table[0, :, :16], atol=5e-5)


def test_llama_refuses_rotary_positions_that_are_not_built():
    """In one line each, with what there is."""
    with pytest.raises(UserError, match="rope_type is 'dynamic', must be one of 'default', 'linear', 'llama3', 'yarn'"):
        config_of(model_type="llama", rope_scaling={"type": "dynamic", "factor": 2.0})
    with pytest.raises(UserError, match=r"partial_rotary_factor is 0\.5"):
        config_of(model_type="llama", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})


def test_windows_are_those_of_each_kind():
    """Mistral's in every block, Qwen's in its last ones if used at all, Llama's never."""
    fields = {"sliding_window": 5, "num_hidden_layers": 3, "max_window_layers": 2}
    assert config_of(model_type="mistral", **fields).windows == (5, 5, 5)
    assert config_of(model_type="mistral", num_hidden_layers=2).windows == (4096, 4096)
    assert config_of(model_type="mistral", **fields | {"sliding_window": None}).windows == (None,) * 3
    assert config_of(model_type="qwen2", **fields).windows == (None,) * 3
    assert config_of(model_type="qwen3", use_sliding_window=True, **fields).windows == (None, None, 5)
    assert config_of(model_type="llama", use_sliding_window=True, **fields).windows == (None,) * 3


def test_roberta_counts_positions_over_tokens_alone():
    """From the one after the padding id, which has its own."""
    ids = np.array([[0, 5, 1, 6, 2, 1, 1]])
    np.testing.assert_array_equal(roberta.positions(ids, 1), [[2, 3, 1, 4, 5, 1, 1]])


def test_roberta_takes_as_many_tokens_as_it_has_positions_left():
    """Two fewer than `max_position_embeddings` says."""
    fields = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    checkpoint = loading.from_config({"model_type": "xlm-roberta", **fields, "max_position_embeddings": 6})
    model = loading.build(checkpoint, None, jax.random.key(0))
    assert model({"input_ids": np.full((1, 4), 7)})["last_hidden_state"].shape == (1, 4, 8)
    with pytest.raises(UserError, match="has 5 tokens, the network has 4 positions"):
        model({"input_ids": np.full((1, 5), 7)})


def test_roberta_trains_a_head_from_a_bare_file(hf, tmp_path):
    """A published classifier's first layer is not the bare network's pooling layer: it starts anew, and is saved under
    its own name, so that nothing is missing when the file is read elsewhere."""
    _, transformers = hf
    fields = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.RobertaModel(transformers.RobertaConfig(**fields, vocab_size=9)).save_pretrained(tmp_path / "bare")
    checkpoint = loading.open_checkpoint(str(tmp_path / "bare"), overrides={"architectures": [*roberta.HEADS][:1]})
    task, _ = pretrained.published_head(checkpoint)
    checkpoint, add_head = checkpoint.for_pool(task.pool), loading.adder(task)
    model = loading.abstract(checkpoint, add_head)
    with pytest.raises(UserError, match="dense/kernel"):
        loading.load(checkpoint, model, add_head, fresh=("head/.*",))
    loaded = loading.load(checkpoint, model, add_head, fresh=("(dense|head)/.*",))
    chain.merge_into(model, loaded.params)
    pretrained.Pretrained(model, checkpoint, loaded, checkpoint.published).save(tmp_path / "head")
    cls = transformers.RobertaForSequenceClassification
    _, info = cls.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (64, 256), (20, 100)])
def test_t5_buckets_are_those_of_transformers(hf, both_ways, count, farthest):
    """At every distance, the edges of the buckets included."""
    torch, transformers = hf
    ahead = np.arange(-600, 601)
    bucket = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    expected = bucket(torch.from_numpy(ahead), both_ways, count, farthest)
    np.testing.assert_array_equal(t5.buckets(ahead, both_ways, count, farthest), expected)


def test_t5_shares_its_embedding_and_its_biases():
    """One leaf each, in the first stage that has it."""
    published = {"model_type": "t5", "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "num_layers": 2}
    model = loading.abstract(loading.from_config(published))
    paths = chain.split(model)[1]
    assert [path for path in paths if "embedding" in path] == [
        "stem/word/embedding",
        "blocks/0/bias/embedding",
        "blocks/2/bias/embedding",
    ]


@pytest.mark.parametrize(("count", "farthest"), [(256, 512), (32, 128), (-1, 24)])
def test_deberta_positions_are_those_of_transformers(hf, count, farthest):
    """At every distance, the edges of the buckets included."""
    torch, transformers = hf
    build = transformers.models.deberta_v2.modeling_deberta_v2.build_relative_position
    expected = build(torch.zeros(1, 700, 1), torch.zeros(1, 700, 1), count, farthest)[0]
    behind = np.arange(700)[:, None] - np.arange(700)
    found = deberta.relative_positions(np.arange(-699, 700), count, farthest)
    np.testing.assert_array_equal(found[behind + 699], expected)


def test_deberta_refuses_what_is_not_built():
    """Words narrower than the network, and norms of another kind."""
    with pytest.raises(UserError, match="embedding_size is 64.*only 128 is supported"):
        config_of(model_type="deberta-v2", hidden_size=128, num_attention_heads=2, embedding_size=64)
    with pytest.raises(UserError, match="norm_rel_ebd is 'batch_norm'"):
        config_of(model_type="deberta-v2", norm_rel_ebd="batch_norm")
