# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""wav2vec 2.0, HuBERT, WavLM, Whisper and AST where they differ from other families: names of older files, padding,
what training hides, distances, refusals."""

import json
import re

import jax
import numpy as np
import published.wav2vec2
import pytest
from safetensors.numpy import load_file, save_file

import tl_jax
from tl_jax import loading, pretrained
from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Mode
from tl_jax.core.errors import UserError
from tl_jax.models import wavlm
from tl_jax.nn.spans import spans

BASE = {"model_type": "wav2vec2", **published.wav2vec2.BASE}
LARGE = {"model_type": "wav2vec2", **published.wav2vec2.LARGE}
WHISPER = {"model_type": "whisper", "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 9}
WHISPER |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
WHISPER |= {"num_mel_bins": 4, "max_source_positions": 5, "max_target_positions": 3}


def built(fields):
    """A network from scratch, without a head's parts."""
    checkpoint = loading.from_config(fields).for_pool("")
    model = loading.abstract(checkpoint)
    loaded = loading.load(checkpoint, model, key=jax.random.key(0))
    chain.merge_into(model, loaded.params)
    return pretrained.Pretrained(model, checkpoint, loaded, checkpoint.published)


def samples(*counts):
    """Noise of so many samples a row, padded to the longest."""
    mask = np.arange(max(counts)) < np.array(counts)[:, None]
    values = np.random.default_rng(0).normal(size=mask.shape) * mask
    return {"input_values": values.astype(np.float32), "attention_mask": mask.astype(np.int32)}


def test_older_names_of_weight_norm_load_and_are_kept(tmp_path):
    """`weight_g` and `weight_v`, in which most files are published."""
    whole = built(BASE)
    whole.save(tmp_path / "new")
    tensors = load_file(tmp_path / "new/model.safetensors")
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for name in [name for name in tensors if "parametrizations" in name]:
        stem, _, last = name.partition("parametrizations")
        tensors[stem + older["parametrizations" + last]] = tensors.pop(name)
    save_file(tensors, tmp_path / "new/model.safetensors")

    again = tl_jax.load_pretrained(tmp_path / "new")
    for path, leaf in whole.params.items():
        np.testing.assert_array_equal(again.params[path], leaf, err_msg=path)
    again.save(tmp_path / "kept")
    assert load_file(tmp_path / "kept/model.safetensors").keys() == tensors.keys()


def test_padding_changes_nothing_in_the_layer_norm_form():
    """A sound alone, and beside a longer one; the group-norm form counts padding, as published."""
    both, alone = samples(400, 290), samples(400, 290)
    alone = {name: value[1:, :290] for name, value in alone.items()}
    for fields, same in ((LARGE, True), (BASE, False)):
        network = built(fields)
        short = np.asarray(network(alone)["last_hidden_state"])[0]
        padded = np.asarray(network(both)["last_hidden_state"])[1, : len(short)]
        assert np.allclose(short, padded, atol=1e-5) == same


def test_spans_cover_their_share_and_stay_within():
    """No position beyond a row's length, spans of the asked length, their number as the share says."""
    lengths = np.array([100, 60, 12, 3])
    hidden = np.array([spans(lengths, 100, 0.3, 10, 1, jax.random.key(seed)) for seed in range(200)])
    assert not (hidden & (np.arange(100) >= lengths[:, None])).any()
    assert not hidden[:, 3].any() and (hidden[:, 2].sum(axis=1) == 10).all()
    runs = np.diff(np.pad(hidden[:, 0], ((0, 0), (1, 1))).astype(int), axis=1)
    assert (np.flatnonzero((runs == -1).ravel()) - np.flatnonzero((runs == 1).ravel()) >= 10).all()
    assert 20 < hidden[:, 0].sum(axis=1).mean() < 30
    assert len({row.tobytes() for row in hidden[:, 0]}) > 150


def test_only_training_hides_frames():
    """By the learned vector, in the stem's output; the same key hides the same ones."""
    network = built(LARGE | {"mask_time_prob": 0.5, "mask_time_length": 3})
    stem, params = chain.split(network.model)[0][""][0], network.params
    carry = network.model.begin("", samples(400, 290), {})

    def run(mode, seed):
        return np.asarray(chain.run_stage(stem, params, carry, mode, jax.random.key(seed))[0].x)

    plain, hidden = run(EVAL, 0), run(Mode(dropout=True), 0)
    changed = (plain != hidden).any(axis=-1)
    assert 0 < changed[0].sum() < changed.shape[1]
    np.testing.assert_array_equal(hidden[changed], np.broadcast_to(params["stem/masked"], hidden[changed].shape))
    np.testing.assert_array_equal(run(Mode(dropout=True), 0), hidden)
    assert (run(Mode(dropout=True), 1) != hidden).any()


def test_distances_fall_into_the_buckets_of_transformers():
    """All distances of half a minute, at the published sizes."""
    import torch
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    attention = WavLMAttention(8, 2, num_buckets=320, max_distance=800)
    expected = attention._relative_positions_bucket(torch.arange(-1500, 1501))
    np.testing.assert_array_equal(wavlm.buckets(1500, 320, 800), expected)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "whisper"])
def test_bfloat16_parameters_compute_in_bfloat16(kind):
    """Nothing in between widens what flows."""
    fields, batch = BASE | {"model_type": kind}, samples(400, 290)
    if kind == "whisper":
        fields, ids = WHISPER, np.zeros((1, 2), np.int32)
        batch = {"input_features": np.zeros((1, 10, 4), np.float32), "decoder_input_ids": ids}
    network = built(fields)
    model, chains = network.model, chain.split(network.model)[0]

    def forward(params):
        return chain.run_chains(model, chains, params, batch, lambda _: EVAL, dtype="bfloat16")[0]

    assert {str(value.dtype) for value in jax.eval_shape(forward, network.params).values()} == {"bfloat16"}


def test_biases_by_distance_are_one_parameter():
    """All blocks of WavLM share those of the first."""
    params = built(BASE | {"model_type": "wavlm"}).params
    assert [path for path in params if "relative" in path] == ["blocks/0/attn/relative/embedding"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (BASE | {"add_adapter": True}, "add_adapter is True, only False"),
        (BASE | {"adapter_attn_dim": 16}, "adapter_attn_dim is 16"),
        (BASE | {"use_weighted_layer_sum": True}, "use_weighted_layer_sum"),
        (BASE | {"conv_kernel": [10, 3]}, "3, 3, 2 entries.*one length"),
        (BASE | {"model_type": "hubert", "conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        (WHISPER | {"apply_spec_augment": True}, "apply_spec_augment"),
        (WHISPER | {"encoder_layerdrop": 0.1}, "encoder_layerdrop is 0.1"),
        ({"model_type": "audio-spectrogram-transformer", "num_mel_bins": 8}, "1024 frames of 8 bands hold no patch"),
    ],
)
def test_what_is_not_built_is_refused(fields, message):
    """One line that names the field."""
    with pytest.raises(UserError, match=message):
        loading.from_config(fields)


def test_inputs_of_another_form_are_refused():
    """Too few samples, two channels, a spectrogram of another length, no text for the decoder, too long a text."""
    network = built(BASE)
    with pytest.raises(UserError, match="20 samples are too few"):
        network({"input_values": np.zeros((1, 20), np.float32)})
    with pytest.raises(UserError, match=r"\[1, 400, 2\].*\[B, S\]. Mix down"):
        network({"input_values": np.zeros((1, 400, 2), np.float32)})
    network, features = built(WHISPER), np.zeros((1, 10, 4), np.float32)
    with pytest.raises(UserError, match=r"\[1, 4, 10\].*\[B, 10, 4\]"):
        network({"input_features": features.swapaxes(1, 2)})
    with pytest.raises(UserError, match="no decoder_input_ids"):
        network({"input_features": features})
    with pytest.raises(UserError, match="4 tokens, there are 3 positions"):
        network({"input_features": features, "decoder_input_ids": np.zeros((1, 4), np.int32)})


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_a_network_that_hides_nothing_leaves_the_mask_out(family, tmp_path):
    """A published file holds it all the same."""
    fields = published.wav2vec2.BASE | {"model_type": family}
    built(fields).save(tmp_path)
    assert any("masked_spec_embed" in name for name in load_file(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(fields | {"mask_time_prob": 0.0}))
    assert len(tl_jax.load_pretrained(tmp_path).receipt.ignored) == 1


def test_a_published_ctc_head_knows_its_symbols(tmp_path):
    """By `vocab.json`; a blank elsewhere than at 0 is refused."""
    checkpoint = loading.from_config(BASE | {"architectures": ["Wav2Vec2ForCTC"], "vocab_size": 4})
    task, _ = pretrained.published_head(checkpoint)
    checkpoint, add_head = checkpoint.for_pool(task.pool), loading.adder(task)
    model = loading.abstract(checkpoint, add_head)
    loaded = loading.load(checkpoint, model, add_head, key=jax.random.key(0))
    chain.merge_into(model, loaded.params)
    pretrained.Pretrained(model, checkpoint, loaded, checkpoint.published).save(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "E": 2, "T": 3}))
    assert tl_jax.load_pretrained(tmp_path).classes == ("<pad>", "|", "E", "T")
    (tmp_path / "config.json").write_text(json.dumps({**checkpoint.published, "pad_token_id": 3}))
    with pytest.raises(UserError, match="pad_token_id, the blank, is 3"):
        tl_jax.load_pretrained(tmp_path)


def test_ds_cnn_gives_the_outputs_of_keras(shared_data):
    """Real weights: the published probabilities, and of 300 words as many right as its facts say, 91.33 %."""
    folder = shared_data / "weights/ds_cnn_kws_mlperftiny"
    loaded, reference = tl_jax.load_pretrained(folder), np.load(folder / "reference.npz")
    logits = loaded({"input_features": reference["input_nhwc"][..., 0]})["logits"]
    np.testing.assert_allclose(jax.nn.softmax(logits), reference["probs"], atol=1e-5)
    assert not loaded.receipt.ignored and len(loaded.params) == len(loaded.receipt.loaded)
    words, facts = np.load(shared_data / "speech/kws_mfcc/data.npz"), json.loads((folder / "config.json").read_text())
    scale, zero = facts["quantization"]["scale"], facts["quantization"]["zero_point"]
    mfcc = ((words["x_test"].astype(np.float32) - zero) * scale).reshape(-1, 49, 10)
    assert (loaded({"input_features": mfcc})["logits"].argmax(axis=1) == words["y_test"]).sum() == 274


@pytest.mark.parametrize("name, width", [("res8_kws_honk", 45), ("res8_narrow_kws_honk", 19)])
def test_res8_gives_the_outputs_of_its_reference(shared_data, name, width):
    """Real weights; what an older form read is ignored by name."""
    folder = shared_data / "weights" / name
    loaded, reference = tl_jax.load_pretrained(folder), np.load(folder / "reference.npz")
    outputs = loaded({"input_features": reference["input_mfcc"]})
    np.testing.assert_allclose(outputs["logits"], reference["logits"], atol=1e-4)
    assert outputs["pooler_output"].shape == (4, width)
    assert all(re.match(r"bn\d.num_batches_tracked|scale\d.scale", tensor) for tensor in loaded.receipt.ignored)


def test_silero_tells_speech_as_its_reference_does(shared_data):
    """Real weights: 40 chunks in a row, the state carried from one to the next, padding behind them or not."""
    folder = shared_data / "weights/silero_vad_16k"
    loaded, reference = tl_jax.load_pretrained(folder), np.load(folder / "reference.npz")
    chunks = reference["chunks"]
    assert (chunks[1:, :64] == chunks[:-1, -64:]).all() and not chunks[0, :64].any()
    samples = chunks[:, 64:].reshape(1, -1)
    found = loaded({"input_values": samples})
    np.testing.assert_allclose(found["speech_prob"][0], reference["speech_prob"], atol=1e-5)
    padded = {"input_values": np.pad(samples, [(0, 0), (0, 700)])}
    padded["attention_mask"] = np.pad(np.ones(samples.shape, np.int32), [(0, 0), (0, 700)])
    again = loaded(padded)
    np.testing.assert_allclose(again["speech_prob"][0, :40], reference["speech_prob"], atol=1e-5)
    assert again["speech_prob"].shape == (1, 42)
