# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One module a family: the class of `transformers` to compare with, and configs that take every branch of it.

MODEL       name of the bare class; None where `transformers` has none, and the family has tests of its own
OTHERS      further classes without a head, compared as those with one are; without it none
CONFIGS     fields of small configs; the last is compared bare, the others (or the only one) with every head
FULL        fields of the network whose full size is compared; without it the published defaults
GAIN        of the drawn kernels, where a deep network without residual sums would lose its input; without it 1
batch       (config, rng) -> inputs by name, NumPy, channels last; without it texts or images by the config's fields
expected    (model, inputs) -> outputs by our names, torch tensors, channels last; without it `outputs` here
"""

import numpy as np


def texts(config, rng):
    """Three rows of 7 ids, padded on the right from 7, 4 and 1 on."""
    mask = np.arange(7) < np.array([[7], [4], [1]])
    return {"input_ids": rng.integers(0, config.vocab_size, (3, 7)), "attention_mask": mask.astype(np.int64)}


def images(config, rng):
    """Three images; 33 is odd at every level, where padding and strides are easiest to get wrong."""
    size = getattr(config, "image_size", 33)
    return {"pixel_values": rng.normal(size=(3, size, size, config.num_channels)).astype(np.float32)}


def outputs(model, inputs):
    """Hidden states, the pooled feature and the logits of a model of `transformers`, channels last."""
    if "pixel_values" in inputs:
        inputs = {**inputs, "pixel_values": inputs["pixel_values"].permute(0, 3, 1, 2)}
    if model.base_model is model:
        found, headed = model(**inputs), {}
    else:
        kept = []
        hook = model.base_model.register_forward_hook(lambda _, __, output: kept.append(output))
        result = model(**inputs)
        hook.remove()
        found = kept[0]
        headed = {name: value for name, value in result.items() if name.endswith("logits")}
    if type(model).__name__.endswith("ForCTC"):
        # Frames of padding are certain of the blank here.
        counts = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(dim=1))
        logits = headed["logits"]
        blank = logits.new_full(logits.shape[-1:], -1e9).index_fill(0, counts.new_zeros(1), 0.0)
        frames = counts.new_ones(logits.shape[1]).cumsum(0) - 1
        headed["logits"] = logits.where((frames < counts[:, None])[..., None], blank)
    named = {"last_hidden_state": found.last_hidden_state}
    if named["last_hidden_state"].ndim == 4:
        named["last_hidden_state"] = named["last_hidden_state"].permute(0, 2, 3, 1)
    if found.get("pooler_output") is not None:
        named["pooler_output"] = found.pooler_output.flatten(1)
    return {**named, **headed}
