# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from vocabularies alone, against those that transformers builds of the same files."""

import json
import string

import pytest

from tl_jax.core.errors import UserError
from tl_jax.data.texts import TextTransform
from tl_jax.data.vocabulary import read_tokenizer

TEXTS = [
    "Hello, World! don't   stop\n\tnow...",
    "Naïve CAFÉ über crème; e\u0301tude",
    "漢字 and カナ, mixed漢text 한국어",
    "\U0001f600 emoji \U0001f469\u200d\U0001f4bb zero\u200bwidth \u00a0space \x07bell",
    "unbelievably-tokenised antidisestablishmentarianism 3.14159 ½ ① ﬁne",
    "x" * 150 + " a",
    "[MASK] in a <mask> text [SEP] of <|endoftext|> tokens <pad>[PAD] <new> <New>",
    " leading and trailing  ",
    ".",
]
PAIRS = [("Who wrote it?", "A café, in 漢字."), ("a", "b " * 30)]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A `vocab.txt`: every letter at both places, some words, some of them cased or accented."""
    letters = string.ascii_letters + string.digits + string.punctuation + "éïü漢字"
    words = ["hello", "Hello", "world", "naive", "naïve", "cafe", "CAFÉ", "##ably", "##ing", "un", "##believ", "token"]
    file = tmp_path_factory.mktemp("pieces") / "vocab.txt"
    entries = [*_SPECIAL, *words, *letters, *(f"##{letter}" for letter in letters)]
    file.write_text("\n".join(entries) + "\n", encoding="utf-8")
    return {"vocab.txt": file.read_bytes()}


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """`vocab.json` and `merges.txt`, trained on the texts themselves, with the special tokens of both classes."""
    from tokenizers import ByteLevelBPETokenizer

    folder, trained = tmp_path_factory.mktemp("merges"), ByteLevelBPETokenizer()
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    trained.train_from_iterator(TEXTS * 3, vocab_size=400, special_tokens=tokens, show_progress=False)
    trained.save_model(str(folder))
    return {name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")}


def write(folder, vocabulary, **files):
    """A checkpoint's folder; keywords are names of JSON files."""
    for name, content in vocabulary.items():
        (folder / name).write_bytes(content)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, **flags}


BERT, GPT2, ROBERTA = {"model_type": "bert"}, {"model_type": "gpt2"}, {"model_type": "roberta"}
NEW = {"215": token("<new>", rstrip=True, special=False)}
OTHERS = {"cls_token": "[MASK]", "sep_token": token("[UNK]")}
CASES = {
    "bert": ("pieces", BERT, {}),
    "cased": ("pieces", BERT, {"tokenizer_config": {"do_lower_case": False}}),
    "accents": ("pieces", BERT, {"tokenizer_config": {"do_lower_case": True, "strip_accents": False}}),
    "stripped": ("pieces", BERT, {"tokenizer_config": {"do_lower_case": False, "strip_accents": True}}),
    "chinese": ("pieces", BERT, {"tokenizer_config": {"tokenize_chinese_chars": False}}),
    "distilbert": ("pieces", {"model_type": "distilbert"}, {}),
    "named": ("pieces", {}, {"tokenizer_config": {"tokenizer_class": "DistilBertTokenizerFast"}}),
    "other_ends": ("pieces", BERT, {"special_tokens_map": OTHERS}),
    "added": ("pieces", BERT, {"added_tokens": {"<new>": 215, "[X]": 216}}),
    "extra": ("pieces", BERT, {"tokenizer_config": {"additional_special_tokens": ["<new>"]}}),
    "declared": ("pieces", BERT, {"tokenizer_config": {"added_tokens_decoder": NEW}}),
    "gpt2": ("merges", GPT2, {}),
    "gpt2_space": ("merges", GPT2, {"tokenizer_config": {"add_prefix_space": True}}),
    "gpt2_ends": ("merges", GPT2, {"tokenizer_config": {"add_bos_token": True, "pad_token": "<pad>"}}),
    "roberta": ("merges", ROBERTA, {}),
    "roberta_space": ("merges", ROBERTA, {"tokenizer_config": {"add_prefix_space": True}}),
    "roberta_mask": ("merges", ROBERTA, {"special_tokens_map": {"mask_token": token("<mask>", lstrip=True)}}),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_transformers(name, tmp_path, request):
    """Ids, types and offsets of texts and pairs, and the padding id, from the same vocabulary and settings."""
    from transformers import AutoTokenizer

    vocabulary, config, files = CASES[name]
    folder = write(tmp_path, request.getfixturevalue(vocabulary), config=config, **files)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = read_tokenizer(folder)
    ours_padding = ours.padding
    ours.no_padding()
    for text in [*TEXTS, *PAIRS]:
        given = text if isinstance(text, tuple) else (text,)
        expected, found = theirs(*given, return_token_type_ids=True, return_offsets_mapping=True), ours.encode(*given)
        assert found.ids == expected["input_ids"], text
        assert found.type_ids == expected["token_type_ids"], text
        assert found.offsets == expected["offset_mapping"], text
    assert (ours_padding and ours_padding["pad_id"]) == theirs.pad_token_id


def test_a_texts_batch_is_filled_with_the_published_id(merges, tmp_path):
    """RoBERTa counts positions by the padding id, so 0 would not do; the checkpoint may be a file of the folder."""
    folder = write(tmp_path, merges, config=ROBERTA)
    (folder / "model.safetensors").touch()
    transform = TextTransform(folder / "model.safetensors", 16, ("input_ids", "attention_mask"))
    batch = transform.collate([transform({"text": "a"})], 5)
    assert batch["input_ids"][0].tolist()[-2:] == [1, 1] and batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("kind", "config", "files", "told"),
    [
        ("pieces", {"model_type": "mpnet"}, {}, r"tokenizer.json: not found\. Save the tokenizer"),
        ("pieces", {"tokenizer_class": "MPNetTokenizer"}, {}, "without it MPNetTokenizer is not built"),
        ("pieces", ROBERTA, {}, "tokenizer.json: not found, nor vocab.json with merges.txt"),
        ("pieces", BERT, {"tokenizer_config": {"do_basic_tokenize": False}}, "do_basic_tokenize False, which"),
        ("pieces", BERT, {"tokenizer_config": {"cls_token": "[C]"}}, r"vocab.txt: lacks \[C\] \(cls_token\)"),
        ("pieces", BERT, {"added_tokens": {"<new>": 300}}, "gives <new> the id 215, not 300"),
        ("pieces", BERT, {"tokenizer_config": {"added_tokens_decoder": [1]}}, "_config.json: is not a tokenizer"),
        ("merges", GPT2, {"vocab": [1]}, "vocab.json: is not a tokenizer"),
        ("merges", GPT2, {"tokenizer_config": [1]}, "tokenizer_config.json: holds no JSON object"),
    ],
)
def test_what_is_not_built_is_refused(kind, config, files, told, tmp_path, request):
    """One line that names the file: a wrong id would only show as lost accuracy."""
    with pytest.raises(UserError, match=told):
        read_tokenizer(write(tmp_path, request.getfixturevalue(kind), config=config, **files))


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model"])
def test_sentencepiece_is_refused_with_the_way_out(name, tmp_path):
    """Where transformers would need another package to read it; the line that writes tokenizer.json is given."""
    (tmp_path / name).write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    write(tmp_path, {}, config={"model_type": "t5"})
    with pytest.raises(UserError, match=f"{name}: is a SentencePiece model.*pip install transformers sentencepiece"):
        read_tokenizer(tmp_path)
