# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""T5, small, with both kinds of MLP and chains of different lengths; distances beyond the last bucket."""

import numpy as np

from published import outputs

MODEL = "T5Model"
_NET = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
_NET |= {"relative_attention_num_buckets": 6, "relative_attention_max_distance": 5, "decoder_start_token_id": 0}
CONFIGS = [_NET | {"num_decoder_layers": 3}, _NET | {"feed_forward_proj": "gated-gelu"}]


def batch(config, rng):
    """Texts that end at token 1, as the published head asks."""
    mask = (np.arange(7) < np.array([[7], [4], [1]])).astype(np.int64)
    ids = rng.integers(2, config.vocab_size, (3, 7)) * mask
    ids[np.arange(3), mask.sum(axis=1) - 1] = 1
    found = {"input_ids": ids, "attention_mask": mask}
    if config.feed_forward_proj == "relu":
        return found
    # The bare network is given what the decoder has read so far, padded too.
    decoder_mask = (np.arange(5) < np.array([[3], [5], [2]])).astype(np.int64)
    return found | {
        "decoder_input_ids": rng.integers(0, config.vocab_size, (3, 5)),
        "decoder_attention_mask": decoder_mask,
    }


def expected(model, inputs):
    """The bare network's and the classifier's outputs as they are; the writer is given the text one token late."""
    if not hasattr(model, "lm_head"):
        return outputs(model, inputs)
    found = model(**inputs, decoder_input_ids=model._shift_right(inputs["input_ids"]), output_hidden_states=True)
    return {"last_hidden_state": found.decoder_hidden_states[-1], "logits": found.logits}
