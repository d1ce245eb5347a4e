# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GPT-2, small, with both forms of its MLP's width."""

from published import texts

MODEL = "GPT2Model"
_NET = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 12}
_NET |= {"pad_token_id": 39, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = [_NET | {"n_inner": 24}, _NET | {"activation_function": "relu"}]


def batch(config, rng):
    """The reference finds the last token by the padding id, which stands where the mask is 0 and nowhere else."""
    found = texts(config, rng)
    ids, mask = found["input_ids"] % config.pad_token_id, found["attention_mask"]
    return found | {"input_ids": ids * mask + config.pad_token_id * (1 - mask)}
