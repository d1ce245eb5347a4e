# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Small networks that write, as `transformers` publishes them.

    reference, folder = writers.publish("T5ForConditionalGeneration", tmp_path, gain=3.0)

Every tensor is drawn, kernels `gain` times as wide as would keep a signal's size, so that the words' scores lie apart.
"""

import pathlib

import numpy as np
import references

_TINY = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = _TINY | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
NETS = {
    "GPT2LMHeadModel": _TINY | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "LlamaForCausalLM": _LLAMA | {"num_key_value_heads": 2},
    "MistralForCausalLM": _LLAMA | {"num_key_value_heads": 2, "sliding_window": 4},
    "T5ForConditionalGeneration": _TINY
    | {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    | {"relative_attention_num_buckets": 6, "relative_attention_max_distance": 7, "decoder_start_token_id": 0},
    "WhisperForConditionalGeneration": _TINY
    | {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 24}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "num_mel_bins": 6, "max_source_positions": 11}
    | {"max_target_positions": 48, "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None},
}


def batch(name: str, rows: int = 3) -> dict[str, np.ndarray]:
    """What a class reads before it writes, and the prompt of what it is to write."""
    rng = np.random.default_rng(0)
    if name.startswith("Whisper"):
        # In the place of the tokens that say language and task.
        prompt = np.tile([1, 5, 6], (rows, 1))
        return {"input_features": rng.normal(size=(rows, 22, 6)).astype(np.float32), "decoder_input_ids": prompt}
    found = {"input_ids": rng.integers(4, 40, (rows, 7))}
    if name.startswith("T5"):
        found["attention_mask"] = (np.arange(7) < np.array([7, 4, 5] * rows)[:rows, None]).astype(np.int64)
    return found


def written(reference, batch, **options) -> np.ndarray:
    """What `transformers` writes, without the prompt."""
    return _generate(reference, batch, **options)[0]


def margins(reference, batch, **options) -> np.ndarray:
    """float[M]: how far the best word's score lies above the second's, wherever greedy search chooses."""
    words, found = _generate(reference, batch, output_scores=True, return_dict_in_generate=True, **options)
    over = np.cumsum(np.isin(words, options["eos_token_id"]), axis=1) - np.isin(words, options["eos_token_id"]) > 0
    ordered = np.sort(np.stack([scores.numpy() for scores in found.scores], axis=1), axis=2)
    return (ordered[..., -1] - ordered[..., -2])[~over]


def _generate(reference, batch, **options):
    """(the words without the prompt, all that `transformers` returns).

    Whisper's own `generate` cuts sounds into pieces and puts a prompt before each; what writes is the same for all.
    """
    import torch
    import transformers

    inputs = {name: torch.from_numpy(np.asarray(value)) for name, value in batch.items()}
    if "input_features" in inputs:
        inputs["input_features"] = inputs["input_features"].transpose(1, 2)
    if reference.config.is_encoder_decoder:
        prompt = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 1
    else:
        prompt = inputs["input_ids"].shape[1]
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        found = transformers.GenerationMixin.generate(reference, **inputs, do_sample=False, **options)
    return (found if torch.is_tensor(found) else found.sequences)[:, prompt:].numpy(), found


def publish(name: str, folder: pathlib.Path, gain: float = 2.0, seed: int = 0, **fields):
    """(the model of `transformers`, the folder that holds it)."""
    torch, transformers = references.quiet("torch", "transformers")
    torch.manual_seed(seed)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**(NETS[name] | fields))).eval()
    with torch.no_grad():
        for path, tensor in model.named_parameters():
            if tensor.ndim == 1:
                tensor.normal_(1.0 if path.endswith("weight") else 0.0, 0.2)
            elif any(word in path for word in ("embed", "shared", "wte", "wpe")):
                tensor.normal_(0.0, 1.0)
            else:
                tensor.normal_(0.0, gain * tensor.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return model, folder
