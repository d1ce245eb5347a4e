# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sounds against the feature extractors of transformers, and files that are none."""

import json
import warnings

import numpy as np
import pytest

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data import sounds
from tl_jax.data.augment import specaugment
from tl_jax.data.sounds import SoundSpec, SoundTransform
from tl_jax.data.sources import sounds as source


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.utils.logging.set_verbosity_error()
    return transformers


def record(seconds, seed=0):
    """A chord that fades, with noise, 16000 samples a second."""
    rng, at = np.random.default_rng(seed), np.arange(int(seconds * 16_000)) / 16_000
    tones = sum(np.sin(2 * np.pi * pitch * at) for pitch in (110, 440, 3520))
    return {"sound": (0.1 * tones * np.exp(-at) + 0.01 * rng.normal(size=len(at))).astype(np.float32), "rate": 16_000}


@pytest.mark.parametrize(
    ("name", "options", "seconds"),
    [
        ("Wav2Vec2FeatureExtractor", {"return_attention_mask": True}, (0.5, 0.31)),
        ("Wav2Vec2FeatureExtractor", {"do_normalize": False}, (0.2, 0.2)),
        ("WhisperFeatureExtractor", {"chunk_length": 2}, (1.23, 2.7)),
        ("WhisperFeatureExtractor", {"chunk_length": 1, "feature_size": 128}, (0.5, 1.0)),
        ("WhisperFeatureExtractor", {}, (1.23, 30.4)),
        ("WhisperFeatureExtractor", {"feature_size": 128}, (30.0,)),
        ("ASTFeatureExtractor", {"max_length": 100}, (0.7, 1.4)),
        ("ASTFeatureExtractor", {}, (1.1,)),
        ("ASTFeatureExtractor", {"max_length": 40, "num_mel_bins": 64, "do_normalize": False}, (0.3, 0.4)),
    ],
)
def test_arrays_are_those_of_transformers(transformers, tmp_path, name, options, seconds):
    """From the file that the extractor saves; shorter and longer than a spectrogram, padded in a batch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        extractor = getattr(transformers, name)(**options)
    extractor.save_pretrained(tmp_path)
    records = [record(length, seed) for seed, length in enumerate(seconds)]
    transform = SoundTransform(sounds.sound_spec(tmp_path), max_length=10_000_000)
    found = transform.collate([transform(one) for one in records])

    padded = {"padding": True} if name == "Wav2Vec2FeatureExtractor" else {}
    expected = extractor([one["sound"] for one in records], sampling_rate=16_000, return_tensors="np", **padded)
    expected = {key: np.asarray(value) for key, value in expected.items()}
    if "input_features" in expected:
        expected["input_features"] = expected["input_features"].swapaxes(1, 2)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # One of them takes Fourier transforms in float32.
        np.testing.assert_allclose(found[key], value, atol=1e-4)


def test_a_waveform_without_mask_is_normalised_as_it_is_alone(transformers, tmp_path):
    """The default extractor, which masks nothing: each sound of a batch is what transformers makes of it alone."""
    extractor = transformers.Wav2Vec2FeatureExtractor()
    extractor.save_pretrained(tmp_path)
    transform = SoundTransform(sounds.sound_spec(tmp_path), max_length=10_000_000)
    records = [record(0.5), record(0.31, seed=1)]
    batch = transform.collate([transform(one) for one in records])
    assert set(batch) == {"input_values"}
    for found, one in zip(batch["input_values"], records):
        alone = extractor(one["sound"], sampling_rate=16_000, return_tensors="np")["input_values"][0]
        np.testing.assert_allclose(found[: len(alone)], alone, atol=1e-6)  # float32 sums in one order
        np.testing.assert_array_equal(found[len(alone) :], 0)


def test_the_file_may_name_no_extractor_or_hold_a_whole_processor(transformers, tmp_path):
    """Older files leave the extractor to the model type; transformers 5 saves it as a part of the processor."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=128, chunk_length=7)
    extractor.save_pretrained(tmp_path)
    expected, file = sounds.sound_spec(tmp_path), tmp_path / "preprocessor_config.json"
    fields = json.loads(file.read_text())
    del fields["feature_extractor_type"]
    file.write_text(json.dumps(fields))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    assert sounds.sound_spec(tmp_path) == expected and expected.mels == 128
    file.unlink()
    with pytest.raises(UserError, match="preprocessor_config.json: not found"):
        sounds.sound_spec(tmp_path)
    transformers.WhisperProcessor(extractor, transformers.WhisperTokenizer()).save_pretrained(tmp_path)
    assert not file.exists()
    assert sounds.sound_spec(tmp_path) == expected


def test_waveforms_are_cut_and_padded_to_the_asked_length():
    """Longer than `max_length`: cut before it is normalised; then zeros up to `length`, which the mask tells."""
    transform = SoundTransform(SoundSpec(normalise=False), max_length=1000)
    short = {"sound": np.ones(300, np.float32), "rate": 16_000}
    batch = transform.collate([transform(record(1)), transform(short)], length=1200)
    assert batch["input_values"].shape == (2, 1200)
    np.testing.assert_array_equal(batch["attention_mask"].sum(axis=1), [1000, 300])
    np.testing.assert_array_equal(batch["input_values"][1, 300:], 0)


@pytest.mark.parametrize("kind", ["log_mel", "filterbank"])
def test_training_hides_stripes_of_a_spectrogram(kind):
    """As `specaugment` does over the frames that the sound has, by the generator alone; without one nothing."""
    spec = SoundSpec(kind, frames=300, mels=40)
    plain, hiding = SoundTransform(spec, 10_000), SoundTransform(spec, 10_000, hide=True)
    sound = record(1.5)
    ((name, features),) = plain(sound).items()
    np.testing.assert_array_equal(hiding(sound)[name], features)
    found = hiding(sound, np.random.default_rng(0))[name]
    np.testing.assert_array_equal(found, specaugment(features, 150, np.random.default_rng(0)))
    np.testing.assert_array_equal(found, hiding(sound, np.random.default_rng(0))[name])
    assert found.dtype == np.float32 and (found[:150] != features[:150]).any() and (found[150:] == features[150:]).all()
    np.testing.assert_array_equal(plain(sound, np.random.default_rng(0))[name], features)


def test_another_rate_is_resampled(shared_data):
    """A real word at 8 kHz is twice as many samples at 16 kHz, of the same loudness."""
    sound, rate = sounds.decode_sound(shared_data / "speech/fsdd/wavs/0_george_0.wav", "0_george_0.wav")
    assert rate == 8000 and sound.dtype == np.float32 and sound.ndim == 1
    values = SoundTransform(SoundSpec(normalise=False), 1_000_000)({"sound": sound, "rate": rate})["input_values"]
    assert len(values) == 2 * len(sound)
    np.testing.assert_allclose(np.sqrt(np.mean(values**2)), np.sqrt(np.mean(sound**2)), rtol=0.02)


def test_a_file_that_is_no_sound_is_named(tmp_path):
    """One line, with the name it goes by."""
    (tmp_path / "word.wav").write_bytes(b"RIFF, but no more")
    with pytest.raises(UserError, match="word.wav: cannot be decoded"):
        sounds.decode_sound(tmp_path / "word.wav", "word.wav")


def test_a_preprocessor_that_is_not_built_is_refused(tmp_path):
    """Another extractor, another hop."""
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"feature_extractor_type": "ClapFeatureExtractor"}))
    with pytest.raises(UserError, match="'ClapFeatureExtractor' is not built"):
        sounds.sound_spec(tmp_path)
    file.write_text(json.dumps({"feature_extractor_type": "WhisperFeatureExtractor", "hop_length": 128}))
    with pytest.raises(UserError, match="hop_length 128"):
        sounds.sound_spec(tmp_path)


def test_a_table_of_words_is_read_with_classes_and_speakers(shared_data):
    """Classes in order, groups by column, sounds decoded when asked for."""
    sets = source.read(Data("sounds", path=str(shared_data / "speech/fsdd"), group="speaker"), source.Config())
    assert {name: len(examples) for name, examples in sets.items()} == {"train": 600, "test": 300}
    train = sets["train"]
    assert train.classes == tuple("0123456789") and train.kind == "sound" and train.groups[0] == "george"
    assert train[0]["rate"] == 8000 and len(train[0]["sound"]) > 1000


def test_a_table_of_transcripts_becomes_rows_of_symbols(shared_data):
    """0 fills up, 1 is the end of a word; the task reads the text back."""
    found = source.read(
        Data("sounds", path=str(shared_data / "speech/speechbrain_samples")), source.Config(text="transcript")
    )
    train = found["train"]
    assert train.classes[:3] == ("<pad>", "|", "A") and train.labels.shape[1] == found["test"].labels.shape[1]
    text = "".join(train.classes[i] for i in train.labels[0] if i)
    assert text == "THE|CHILD|ALMOST|HURT|THE|SMALL|DOG"


def test_rows_that_cannot_be_are_named(tmp_path):
    """A sound that is not there, an empty transcript."""
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "train.tsv").write_text("path\ttext\na.wav\tab\nb.wav\tab\n")
    data, options = Data("sounds", path=str(tmp_path)), source.Config(text="text")
    with pytest.raises(UserError, match="train.tsv:3 names 'b.wav', no file"):
        source.read(data, options)
    (tmp_path / "test.tsv").write_text("path\ttext\na.wav\tab\na.wav\t \n")
    with pytest.raises(UserError, match="test.tsv:3 has no transcript"):
        source.read(data, options)


def test_a_network_may_say_in_words_that_it_takes_samples_as_they_are(shared_data):
    """Silero's config has no preprocessor beside it: nothing is normalised, the padding is masked."""
    spec = sounds.sound_spec(shared_data / "weights" / "silero_vad_16k")
    assert (spec.kind, spec.rate, spec.normalise, spec.masked) == ("waveform", 16_000, False, True)
