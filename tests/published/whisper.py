# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whisper, small, with an encoder that is deeper than the decoder, and the other way round."""

import numpy as np

MODEL = "WhisperModel"
_PLAIN = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 24,
    "vocab_size": 30,
    "num_mel_bins": 6,
    "max_source_positions": 11,
    "max_target_positions": 9,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "classifier_proj_size": 10,
}
CONFIGS = [_PLAIN, _PLAIN | {"encoder_layers": 1, "decoder_layers": 2}]


def batch(config, rng):
    """Spectrograms, mel bands last, and ids that are padded on the right."""
    mask = np.arange(7) < np.array([[7], [4], [1]])
    return {
        "input_features": rng.normal(size=(3, 22, 6)).astype(np.float32),
        "decoder_input_ids": rng.integers(3, config.vocab_size, (3, 7)),
        "decoder_attention_mask": mask.astype(np.int64),
    }


def expected(model, inputs):
    """The decoder's hidden states, bare and with its words, or what the head for classes makes of the encoder's."""
    features = inputs["input_features"].transpose(1, 2)
    text = {name: value for name, value in inputs.items() if name.startswith("decoder")}
    if hasattr(model, "decoder"):
        return {"last_hidden_state": model(features, **text, use_cache=False).last_hidden_state}
    if hasattr(model, "proj_out"):
        found = model(features, **text, use_cache=False, output_hidden_states=True)
        return {"last_hidden_state": found.decoder_hidden_states[-1], "logits": found.logits}
    kept = []
    hook = model.encoder.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = model(features).logits
    hook.remove()
    return {"last_hidden_state": kept[0].last_hidden_state, "logits": logits}
