# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a checkpoint, from whichever files publish it.

    tokenizer = read_tokenizer(checkpoint)
    tokenizer.encode("hello world").ids

In this order: `tokenizer.json`; `vocab.txt` (WordPiece, as BERT); `vocab.json` with `merges.txt` (bytes in pairs, as
GPT-2 and RoBERTa). Which of the last two, the class in `tokenizer_config.json` or the model type in `config.json` says.
Ids equal those of transformers. Knows files, not networks.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from tl_jax.core.errors import UserError, shorten
from tl_jax.data.published import beside, read_json

_SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model")
_FLAGS = ("content", "lstrip", "rstrip", "normalized", "single_word", "special")
# Settings that change ids in a way not built here, with the values that do not.
_REQUIRED = {"do_basic_tokenize": (True, None), "never_split": (None, []), "split_special_tokens": (False, None)}
_SAVE = "save the tokenizer with transformers (save_pretrained writes tokenizer.json)"


@dataclass(frozen=True)
class _Kind:
    """How one class of tokenizers is built.

    Attributes:
      files: its vocabulary.
      tokens: its special tokens, where no file says otherwise.
      needed: those of them that the vocabulary must hold.
      build: (files, special tokens, settings) -> tokenizer without special tokens.
      finish: (special tokens with their ids, settings) -> what puts them around a text or a pair.
    """

    files: tuple[str, ...]
    tokens: Mapping[str, str]
    needed: tuple[str, ...]
    build: Callable[..., Tokenizer]
    finish: Callable[..., processors.PostProcessor]


def read_tokenizer(checkpoint: pathlib.Path) -> Tokenizer:
    """The tokenizer of a checkpoint; its padding says which id fills up, where one is published.

    Args:
      checkpoint: the folder of the published files.

    Raises:
      UserError: no file that a tokenizer can be read from here, one that is broken, a setting that is not built, a
        vocabulary without a token that it needs, or that gives a token another id than was declared.
    """
    settings = read_json(checkpoint, "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        # Older files say of some tokens more there; newer ones have it all in one place.
        settings = {**settings, **read_json(checkpoint, "special_tokens_map.json")}
    file = beside(checkpoint, "tokenizer.json")
    if file.is_file():
        with _reading(file):
            tokenizer = Tokenizer.from_file(str(file))
        pad = _added(settings.get("pad_token"))
    else:
        kind = _kind(checkpoint, settings)
        with _reading(beside(checkpoint, "tokenizer_config.json")):
            tokenizer, tokens = _built(checkpoint, kind, settings)
        pad = tokens.get("pad_token")
    pad_id = None if pad is None else tokenizer.token_to_id(pad.content)
    if tokenizer.padding is None and pad_id is not None:
        tokenizer.enable_padding(pad_id=pad_id, pad_token=pad.content)
    return tokenizer


def _kind(checkpoint: pathlib.Path, settings: dict[str, Any]) -> _Kind:
    config = read_json(checkpoint, "config.json")
    name = settings.get("tokenizer_class") or config.get("tokenizer_class") or _CLASSES.get(config.get("model_type"))
    kind = _KINDS.get(str(name).removesuffix("Fast"))
    if kind is not None and all(beside(checkpoint, file).is_file() for file in kind.files):
        return kind
    folder = repr(str(beside(checkpoint, "")))
    for file in _SENTENCEPIECE:
        if beside(checkpoint, file).is_file():
            raise UserError(
                str(beside(checkpoint, file)),
                "is a SentencePiece model, which is not read here",
                "write tokenizer.json beside it: pip install transformers sentencepiece protobuf, then python -c "
                f'"from transformers import AutoTokenizer as A; A.from_pretrained({folder}).save_pretrained({folder})"',
            )
    wanted = f", nor {' with '.join(kind.files)}" if kind else f", and without it {name} is not built" if name else ""
    raise UserError(str(beside(checkpoint, "tokenizer.json")), f"not found{wanted}", _SAVE)


def _built(checkpoint: pathlib.Path, kind: _Kind, settings: dict[str, Any]) -> tuple[Tokenizer, dict[str, AddedToken]]:
    """(tokenizer, special tokens by name) from a vocabulary and what the other files say of it."""
    config = str(beside(checkpoint, "tokenizer_config.json"))
    wrong = [f"{name} {settings[name]}" for name, ok in _REQUIRED.items() if settings.get(name, ok[0]) not in ok]
    if wrong:
        raise UserError(config, f"asks for {shorten(wrong)}, which is not built", _SAVE)
    tokens = {name: _added(value) for name, value in {**kind.tokens, **settings}.items() if name.endswith("_token")}
    tokens = {name: token for name, token in tokens.items() if token is not None}
    files = [beside(checkpoint, file) for file in kind.files]
    with _reading(files[0]):
        tokenizer = kind.build(*map(str, files), tokens, settings)
    have = {name for name, token in tokens.items() if tokenizer.token_to_id(token.content) is not None}
    lacking = [
        f"{tokens[name].content if name in tokens else 'any'} ({name})" for name in kind.needed if name not in have
    ]
    if lacking:
        raise UserError(str(files[0]), f"lacks {shorten(lacking)}", "fetch the checkpoint again")
    _add(checkpoint, tokenizer, tokens, settings)
    ids = {name: (token.content, tokenizer.token_to_id(token.content)) for name, token in tokens.items()}
    tokenizer.post_processor = kind.finish(ids, settings)
    return tokenizer, tokens


def _add(
    checkpoint: pathlib.Path, tokenizer: Tokenizer, tokens: Mapping[str, AddedToken], settings: dict[str, Any]
) -> None:
    """Let the tokenizer find special tokens in a text, and give ids to those beyond the vocabulary."""
    extra = [
        _added(value)
        for name in ("additional_special_tokens", "extra_special_tokens")
        for value in _values(settings.get(name))
    ]
    special = {token.content: token for token in (*tokens.values(), *extra)}
    declared = {int(number): _added(token) for number, token in settings.get("added_tokens_decoder", {}).items()}
    if not declared:
        for content, number in read_json(checkpoint, "added_tokens.json").items():
            declared[number] = _added({"content": content, "special": content in special})
    known = {token.content for token in declared.values()}
    tokenizer.add_tokens([declared[number] for number in sorted(declared)])
    tokenizer.add_tokens([token for content, token in special.items() if content not in known])
    moved = [
        f"{token.content} the id {tokenizer.token_to_id(token.content)}, not {number}"
        for number, token in sorted(declared.items())
        if tokenizer.token_to_id(token.content) != number
    ]
    if moved:
        raise UserError(
            str(beside(checkpoint, "")), f"its vocabulary gives {shorten(moved)}", "fetch the checkpoint again"
        )


def _added(value: Any) -> AddedToken | None:
    """What a file says of one token as an AddedToken, special unless it says so; None where it says nothing."""
    fields = {"content": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or "content" not in fields:
        return None
    return AddedToken(**{"special": True, **{name: fields[name] for name in _FLAGS if name in fields}})


def _values(tokens: Any) -> list[Any]:
    return list(tokens.values()) if isinstance(tokens, dict) else list(tokens or ())


@contextlib.contextmanager
def _reading(file: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # The Rust side raises a bare Exception.
    except Exception as error:
        raise UserError(str(file), f"is not a tokenizer ({error})", "fetch the checkpoint again") from error


def _wordpiece(vocab: str, tokens, settings):
    """BERT: words and punctuation apart, then the longest pieces of each word (Devlin et al. 2019)."""
    tokenizer = Tokenizer(models.WordPiece.from_file(vocab, unk_token=tokens["unk_token"].content))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        # None: as `lowercase`.
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _bytes_in_pairs(vocab: str, merges: str, tokens, settings):
    """GPT-2: bytes, merged in the order in which pairs were learnt (Radford et al. 2019)."""
    tokenizer = Tokenizer(models.BPE.from_file(vocab, merges))
    space = settings.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    return tokenizer


def _bert_pair(ids, settings):
    (cls, _), (sep, _) = around = ids["cls_token"], ids["sep_token"]
    return processors.TemplateProcessing(f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", list(around))


def _roberta_pair(ids, settings):
    return processors.RobertaProcessing(
        ids["sep_token"],
        ids["cls_token"],
        trim_offsets=settings.get("trim_offsets", True),
        add_prefix_space=settings.get("add_prefix_space", False),
    )


def _gpt2_pair(ids, settings):
    asked = {name: name in ids and settings.get(f"add_{name}") for name in ("bos_token", "eos_token")}
    before, after = ([ids[name]] if wanted else [] for name, wanted in asked.items())
    one = [*(token for token, _ in before), "$A", *(token for token, _ in after)]
    two = [*one, *(f"{'$B' if token == '$A' else token}:1" for token in one)]
    return processors.TemplateProcessing(one, two, [*before, *after])


_BERT = _Kind(
    ("vocab.txt",),
    {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"},
    ("unk_token", "cls_token", "sep_token"),
    _wordpiece,
    _bert_pair,
)
_PAIRS = ("vocab.json", "merges.txt")
_GPT2 = _Kind(
    _PAIRS,
    dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    (),
    _bytes_in_pairs,
    _gpt2_pair,
)
_ROBERTA = _Kind(
    _PAIRS,
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    ("cls_token", "sep_token", "pad_token"),
    _bytes_in_pairs,
    _roberta_pair,
)
_KINDS = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "GPT2Tokenizer": _GPT2,
    "RobertaTokenizer": _ROBERTA,
}
# The class of a checkpoint that names none.
_CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
}
