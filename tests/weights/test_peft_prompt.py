# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Prompts beside those of PEFT, both ways through its files."""

import importlib
import json
import shutil
import warnings

import jax
import makers
import numpy as np
import published
import pytest
import references
from safetensors.numpy import load_file

import tl_jax
from tl_jax.core import chain
from tl_jax.core.errors import UserError

# Class, family, PEFT's task type. RoBERTa's classifier has two layers, beside DistilBERT's PEFT keeps its pooling layer
# too, and asks for numbers that it finds by itself in the others.
_CASES = {
    "BertForSequenceClassification": ("bert", "SEQ_CLS"),
    "RobertaForSequenceClassification": ("roberta", "SEQ_CLS"),
    "DistilBertForSequenceClassification": ("distilbert", "SEQ_CLS"),
    "LlamaForSequenceClassification": ("llama", "SEQ_CLS"),
    "GPT2LMHeadModel": ("gpt2", "CAUSAL_LM"),
    "BertForQuestionAnswering": ("bert", "QUESTION_ANS"),
}
_COUNT = 4
# Sums of a few dozen terms in float32 in another order, through a few layers of order 1.
_CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def hf():
    """(torch, transformers, peft)."""
    return references.quiet("torch", "transformers", "peft")


@pytest.fixture(scope="module")
def make(hf, tmp_path_factory):
    """A function that draws a base and a prompt and writes both: name -> (base's folder, prompt's, PEFT's model,
    batch)."""
    torch, transformers, peft = hf

    def draw(name):
        family, task = _CASES[name]
        tiny, cls = importlib.import_module(f"published.{family}"), getattr(transformers, name)
        torch.manual_seed(0)
        model = cls(cls.config_class(**tiny.CONFIGS[0], **({"num_labels": 3} if task == "SEQ_CLS" else {}))).eval()
        told = {"token_dim": 16, "num_layers": 2, "num_attention_heads": 2} if family == "distilbert" else {}
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.normal_(0.0, 0.5 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
            base, adapter = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("prompt")
            model.save_pretrained(base)
            config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=_COUNT, **told)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reference = peft.get_peft_model(model, config).eval()
            for tensor in reference.parameters():
                if tensor.requires_grad:
                    tensor.normal_()
            reference.save_pretrained(adapter)
        batch = getattr(tiny, "batch", published.texts)(model.config, np.random.default_rng(1))
        # RoBERTa counts positions by ids, and by embeddings, which PEFT hands it, cannot see the padding's.
        batch = {key: np.maximum(value[:, :6], 2 * (key == "input_ids")) for key, value in batch.items()}
        if family in ("gpt2", "llama"):
            # Handed embeddings, `transformers` takes the last position for the last word: so no padding.
            del batch["attention_mask"]
        if task == "QUESTION_ANS":
            # PEFT leaves them out there.
            del batch["token_type_ids"]
        return base, adapter, reference, batch

    return draw


def theirs(hf, model, batch) -> dict[str, np.ndarray]:
    """What PEFT's model gives, of the text's own positions where there is one for each."""
    torch = hf[0]
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(value) for name, value in batch.items()})
    found = {name: value.numpy() for name, value in found.items() if name.endswith("logits")}
    by_token = batch["input_ids"].shape[1] + _COUNT
    return {name: x[:, _COUNT:] if x.shape[1] == by_token else x for name, x in found.items()}


def ours(pretrained, batch) -> dict[str, np.ndarray]:
    """As a call gives them, compiled without optimising what runs once."""
    model, quick = pretrained.model, {"xla_backend_optimization_level": 0}
    found = jax.jit(lambda: model(batch), compiler_options=quick)()
    return {name: np.asarray(value) for name, value in found.items() if name.endswith("logits")}


def assert_close(found, expected, batch) -> None:
    """All that stands on no padding."""
    assert set(found) == set(expected) != set()
    counts = np.asarray(batch.get("attention_mask", np.ones_like(batch["input_ids"]))).astype(bool)
    for name, value in expected.items():
        keep = counts if value.shape[:2] == counts.shape else ...
        np.testing.assert_allclose(found[name][keep], value[keep], **_CLOSE)


@pytest.mark.parametrize("name", _CASES)
def test_the_same_network_as_peft_both_ways(hf, make, tmp_path, name):
    """PEFT's file here gives PEFT's outputs, and ours, which holds the same tensors, gives them in PEFT."""
    base, adapter, reference, batch = make(name)
    expected = theirs(hf, reference, batch)
    network = tl_jax.load_adapter(tl_jax.load_pretrained(base), adapter)
    assert_close(ours(network, batch), expected, batch)
    tl_jax.save_adapter(network, tmp_path / "ours")
    files = [load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "ours", adapter)]
    assert set(files[0]) == set(files[1])
    for tensor, value in files[1].items():
        np.testing.assert_array_equal(files[0][tensor], value)
    assert sum(value.size for value in files[0].values()) == reference.get_nb_trainable_parameters()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(hf[1], name).from_pretrained(base)
        back = hf[2].PeftModel.from_pretrained(model, tmp_path / "ours").eval()
    assert_close(theirs(hf, back, batch), expected, batch)


@pytest.fixture(scope="module")
def bert(make):
    """The case of a classifier."""
    return make("BertForSequenceClassification")


def test_gradients_are_those_of_peft(hf, bert):
    """Of the rows and of the head, through the whole network."""
    base, adapter, reference, batch = bert
    reference.zero_grad()
    reference(**{name: hf[0].from_numpy(value) for name, value in batch.items()}).logits.pow(2).sum().backward()
    network = tl_jax.load_adapter(tl_jax.load_pretrained(base), adapter)
    chains, params = chain.split(network.model)
    names = ("stem/word/prompt/rows", "head/kernel")

    def loss(trained):
        all_ = {**params, **trained}
        return (chain.run_chains(network.model, chains, all_, batch, lambda _: chain.EVAL)[0]["logits"] ** 2).sum()

    quick = {"xla_backend_optimization_level": 0}
    found = jax.jit(jax.grad(loss), compiler_options=quick)({name: params[name] for name in names})
    classifier = reference.base_model.classifier.modules_to_save["default"]
    expected = reference.prompt_encoder["default"].embedding.weight.grad.numpy(), classifier.weight.grad.numpy().T
    for name, value in zip(names, expected):
        assert np.abs(value).max() > 0.1
        np.testing.assert_allclose(found[name], value, **_CLOSE)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"num_virtual_tokens": 5}, r"says \[5, 16\] of prompt_embeddings, and holds \[4, 16\]"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type='PREFIX_TUNING'"),
        ({"peft_type": "LORA"}, r"found no parameter: .*prompt_embeddings \[4, 16\]"),
    ],
)
def test_other_files_are_refused(bert, tmp_path, changes, message):
    """Of another size than they say, or of another kind of prompt."""
    base, adapter, *_ = bert
    shutil.copytree(adapter, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message):
        tl_jax.load_adapter(tl_jax.load_pretrained(base), tmp_path / "a")


def test_another_network_is_refused(make, tmp_path):
    """One of another width, by both shapes; one that reads no text."""
    adapter = make("GPT2LMHeadModel")[1]
    narrow = tl_jax.load_pretrained(makers.bert(tmp_path / "bert", hidden_size=8))
    with pytest.raises(UserError, match=r"rows of stem/word/embedding is \[4, 16\], \[4, 8\] is needed"):
        tl_jax.load_adapter(narrow, adapter)
    with pytest.raises(UserError, match="a prompt stands before the words of a text"):
        tl_jax.load_adapter(tl_jax.load_pretrained(makers.resnet(tmp_path / "resnet")), adapter)
