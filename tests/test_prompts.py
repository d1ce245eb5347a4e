# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Classifiers from class names, against `transformers` on the same prompts."""

import shutil

import makers
import numpy as np
import pytest
from published import clip, siglip
from tokenizers import Tokenizer

import tl_jax
from tl_jax.core.errors import UserError

CLASSES = ("cat", "apple word3", "iron")
TEMPLATES = ("word0 word1 {}", "{} word5 word6 word7")
POSITIONS = 12
FAMILIES = {"CLIP": clip, "Siglip": siglip}


@pytest.fixture(scope="module", params=FAMILIES)
def published(request, tmp_path_factory):
    """(torch, a random network of `transformers`, its folder with a tokenizer)."""
    import torch
    import transformers

    torch.manual_seed(0)
    fields = FAMILIES[request.param].CONFIGS[0]
    # The tokenizer ends texts with token 3.
    fields = fields | {"text_config": fields["text_config"] | {"eos_token_id": 3}}
    cls = getattr(transformers, f"{request.param}Model")
    model, folder = cls(cls.config_class(**fields)).eval(), tmp_path_factory.mktemp("published")
    with torch.no_grad():
        for path, tensor in model.named_parameters():
            if tensor.ndim < 2:
                tensor.normal_(1.0 if path.endswith(("weight", "scale")) else 0.0, 0.2)
            else:
                # Words weigh most, or all prompts would look alike.
                tensor.normal_(0.0, 3.0 if "token_embedding" in path else 0.3)
    model.save_pretrained(folder)
    shutil.copy(f"{makers.bert(tmp_path_factory.mktemp('bert'))}/tokenizer.json", folder)
    return torch, model, folder


def expected(torch, model, folder, pixels, templates):
    """float[images, classes, templates]: what the network says of every prompt, and the texts' directions."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [template.format(name) for name in CLASSES for template in templates]
    if "Siglip" in type(model).__name__:
        tokenizer.enable_padding(length=POSITIONS)
        masks = {}
    else:
        tokenizer.enable_padding()
        masks = {"attention_mask": torch.tensor([row.attention_mask for row in tokenizer.encode_batch(prompts)])}
    ids = torch.tensor([row.ids for row in tokenizer.encode_batch(prompts)])
    with torch.no_grad():
        found = model(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2), input_ids=ids, **masks)
    shape = (len(CLASSES), len(templates), -1)
    return found.logits_per_image.numpy(), found.image_embeds.numpy(), found.text_embeds.numpy().reshape(shape)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(size=(4, 12, 12, 3)).astype(np.float32)


def test_one_template_gives_the_logits_of_transformers(published, pixels):
    """An image against each prompt."""
    torch, model, folder = published
    classify = tl_jax.zero_shot(tl_jax.load_pretrained(folder), CLASSES, TEMPLATES[:1])
    logits, _, _ = expected(torch, model, folder, pixels, TEMPLATES[:1])
    assert classify.classes == CLASSES and classify(pixels).dtype == np.float32
    # Float32 sums of a few dozen terms in another order.
    np.testing.assert_allclose(classify(pixels), logits, atol=1e-4, rtol=1e-4)
    assert logits.std(axis=1).max() > 0.05, "too flat to tell anything"


def test_several_templates_count_by_their_mean_direction(published, pixels):
    """The mean of the unit vectors that `transformers` gives, as a unit vector, in float64; the head is linear."""
    torch, model, folder = published
    classify = tl_jax.zero_shot(tl_jax.load_pretrained(folder), CLASSES, TEMPLATES)
    _, images, texts = expected(torch, model, folder, pixels, TEMPLATES)
    mean = texts.astype(np.float64).mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
    wanted = images.astype(np.float64) @ mean.T * np.exp(model.logit_scale.item()) + bias
    np.testing.assert_allclose(classify(pixels), wanted, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(images @ classify.kernel + classify.bias, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ("cat", TEMPLATES, "classes must be a sequence of texts"),
        (CLASSES, "word0 {}", "templates must be a sequence of texts"),
        ((), TEMPLATES, "classes is empty"),
        (("cat", "cat"), TEMPLATES, "classes has 'cat' more than once"),
        (CLASSES, ("word0",), "'word0' has no {} where the name goes"),
        (("cat " * 11,), ("{}",), "more than 12 tokens: 'cat cat"),
        ((" ",), ("{}",), "is empty"),
    ],
)
def test_what_makes_no_prompts_is_refused(published, classes, templates, message):
    """A text where a sequence belongs, none, one twice, a template without a place, what does not fit."""
    loaded = tl_jax.load_pretrained(published[2])
    with pytest.raises(UserError, match=message):
        tl_jax.zero_shot(loaded, classes, templates)


def test_a_network_that_compares_nothing_is_refused(tmp_path):
    """A text encoder alone."""
    with pytest.raises(UserError, match="compares no images with texts"):
        tl_jax.zero_shot(tl_jax.load_pretrained(makers.bert(tmp_path / "bert")), CLASSES)
