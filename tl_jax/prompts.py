# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Classes from their names alone, by a network of an image tower and a text tower (Radford et al. 2021).

    pretrained = tl_jax.load_pretrained("path/to/clip")
    classify = tl_jax.zero_shot(pretrained, ("cat", "dog"), templates=("a photo of a {}.", "a drawing of a {}."))
    logits = classify(pixel_values)                        # float32[images, classes]

A class is the mean of its prompts' directions, with which images are compared as the network compares them with texts.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.core import chain
from tl_jax.core.chain import EVAL
from tl_jax.core.errors import UserError, shorten
from tl_jax.data.texts import TextTransform
from tl_jax.nn.towers import unit
from tl_jax.pretrained import Pretrained

# Prompts that go through the text tower at once.
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """A classifier that saw no example of its classes.

    Attributes:
      classes: names in the order of the logits.
      kernel, bias: float32[P, C] and float32[C], the head over an image's direction in the common space; the scale by
        which the network multiplies cosines is in it.
      direction: from `pixel_values` to float[B, P] of length 1.
    """

    classes: tuple[str, ...]
    kernel: jax.Array
    bias: jax.Array
    direction: Callable[[jax.Array], jax.Array]

    def __call__(self, pixel_values) -> jax.Array:
        """float[B, H, W, C], normalised, of the network's size -> logits float32[B, classes].

        Raises:
          UserError: images of another size or number of channels.
        """
        return self.direction(jnp.asarray(pixel_values)).astype(jnp.float32) @ self.kernel + self.bias


def zero_shot(
    pretrained: Pretrained, classes: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)
) -> ZeroShot:
    """A head for classes of which there are names only, by the tokenizer in the checkpoint's folder.

    Prompts are padded to the full length and nothing is masked: SigLIP was trained so, and in CLIP, where a token sees
    none behind it, padding makes no difference.

    Args:
      pretrained: a network of two towers, CLIP or SigLIP.
      classes: their names.
      templates: texts with `{}` where the name goes. Of several, the mean of the directions counts, as a direction.

    Raises:
      UserError: no two towers, no tokenizer, names or templates that make no prompts, prompts longer than the network's
        positions.
    """
    where = pretrained.receipt.source
    model, (chains, params) = pretrained.model, chain.split(pretrained.model)
    if "similarity/scale" not in params:
        raise UserError(where, "compares no images with texts", "load a checkpoint of CLIP or SigLIP with both towers")
    ids_NT = _tokens(_prompts(classes, templates), pathlib.Path(where), model.config.text)

    @jax.jit
    def of_texts(params, ids_NT):
        carry = model.begin("text", {"input_ids": ids_NT}, {})
        return unit(chain.run_stages(chains["text"], params, carry, lambda _: EVAL)[0].x["text_embeds"])

    @jax.jit
    def of_images(params, pixel_values, classes_CP):
        carry = model.begin("vision", {"pixel_values": pixel_values}, {"text": {"text_embeds": classes_CP}})
        return chain.run_stages(chains["vision"], params, carry, lambda _: EVAL)[0].x["image_embeds"]

    chunks = [of_texts(params, ids_NT[start : start + _CHUNK]) for start in range(0, len(ids_NT), _CHUNK)]
    prompts_NP = jnp.concatenate(chunks).astype(jnp.float32)
    classes_CP = unit(prompts_NP.reshape(len(classes), len(templates), -1).mean(axis=1))
    bias = jnp.broadcast_to(params.get("similarity/bias", jnp.zeros(1)), len(classes)).astype(jnp.float32)
    return ZeroShot(
        tuple(classes),
        classes_CP.T * jnp.exp(params["similarity/scale"].astype(jnp.float32)),
        bias,
        lambda pixel_values: of_images(params, pixel_values, classes_CP),
    )


def _prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, class by class."""
    mistakes = []
    for name, texts in (("classes", classes), ("templates", templates)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            mistakes.append(f"{name} must be a sequence of texts")
        elif not texts:
            mistakes.append(f"{name} is empty")
        elif len(set(texts)) < len(texts):
            twice = [text for text in dict.fromkeys(texts) if list(texts).count(text) > 1]
            mistakes.append(f"{name} has {shorten(map(repr, twice))} more than once")
    if not mistakes:
        bare = [template for template in templates if "{}" not in template]
        mistakes += [f"{template!r} has no {{}} where the name goes" for template in bare]
    if mistakes:
        raise UserError("zero_shot", "; ".join(mistakes))
    return [template.replace("{}", name) for name in classes for template in templates]


def _tokens(prompts: list[str], folder: pathlib.Path, text) -> np.ndarray:
    """int32[prompts, positions], padded to all positions that the text tower has."""
    limit = text.max_position_embeddings
    # One token more than there is room for, so that what is too long shows instead of being cut.
    transform = TextTransform(folder, limit + 1, ("input_ids",), text.vocab_size)
    rows = [transform({"text": prompt}) for prompt in prompts]
    long = [repr(prompt) for prompt, row in zip(prompts, rows) if len(row["input_ids"]) > limit]
    if long:
        raise UserError("zero_shot", f"more than {limit} tokens: {shorten(long, 2)}", "shorten names or templates")
    return transform.collate(rows, limit)["input_ids"]
