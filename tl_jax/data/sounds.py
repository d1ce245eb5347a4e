# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sounds as the arrays a network was trained on: waveforms, or one of two log-mel spectrograms.

    sound_T, rate = decode_sound(pathlib.Path("word.wav"), "word.wav")
    transform = SoundTransform(sound_spec(checkpoint), max_length=160_000)
    batch = transform.collate([transform({"sound": sound_T, "rate": rate})])

What to do is read from the checkpoint; results agree with the feature extractors of transformers, spectrograms with
the mel bands last. Knows samples, not models.
"""

# T samples or frames, F frequencies, M mel bands

import functools
import pathlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tl_jax.core.errors import UserError, did_you_mean
from tl_jax.data.augment import specaugment
from tl_jax.data.examples import Examples
from tl_jax.data.published import processor, read_json

_KINDS = {
    "Wav2Vec2FeatureExtractor": "waveform",
    "WhisperFeatureExtractor": "log_mel",
    "ASTFeatureExtractor": "filterbank",
}
# Which of them a file means that names none.
_OF_MODEL = {
    "wav2vec2": "Wav2Vec2FeatureExtractor",
    "hubert": "Wav2Vec2FeatureExtractor",
    "wavlm": "Wav2Vec2FeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
}
_WINDOW, _HOP = 400, 160  # samples of 1/16000 s, as all three have it

# How a network that is published without a preprocessor file says that it takes samples as they are.
_PLAIN = "16 kHz mono float32 in -1..1"


@dataclass(frozen=True)
class SoundSpec:
    """What becomes of a sound.

    Attributes:
      kind: `waveform` (samples), `log_mel` (as Whisper) or `filterbank` (as Kaldi and AST).
      rate: samples a second; other sounds are resampled.
      normalise: to mean 0 and deviation 1: a waveform by its own, a filterbank by half of `std` around `mean`.
      masked: batches of waveforms say where samples end.
      mels, frames: size of a spectrogram; sounds are cut or padded to it.
    """

    kind: Literal["waveform", "log_mel", "filterbank"] = "waveform"
    rate: int = 16_000
    normalise: bool = True
    masked: bool = True
    mels: int = 80
    frames: int = 3000
    mean: float = -4.2677393
    std: float = 4.5689974


def sound_spec(checkpoint: pathlib.Path) -> SoundSpec:
    """What the checkpoint's files ask for; the model type in `config.json` decides where they name no extractor.

    Raises:
      UserError: no such file, another feature extractor, another window or rate than is built.
    """
    fields, where = processor(checkpoint, "feature_extractor")
    config = read_json(checkpoint, "config.json")
    if not fields and str(config.get("input")).startswith(_PLAIN):
        return SoundSpec(normalise=False)
    if not fields:
        raise UserError(where, "not found", "fetch the checkpoint with its preprocessor file")
    name = str(fields.get("feature_extractor_type") or _OF_MODEL.get(config.get("model_type")))
    if name not in _KINDS:
        raise UserError(where, f"feature extractor {name!r} is not built{did_you_mean(name, _KINDS)}")
    kind, rate = _KINDS[name], fields.get("sampling_rate", 16_000)
    allowed = {"n_fft": _WINDOW, "hop_length": _HOP, "dither": 0.0, "padding_value": 0.0, "padding_side": "right"}
    wrong = [f"{name} {fields[name]}" for name, value in allowed.items() if fields.get(name, value) != value]
    if wrong or (rate != 16_000 and kind != "waveform"):
        raise UserError(where, f"asks for {', '.join(wrong) or f'{rate} samples a second'}, which is not built")
    if kind == "waveform":
        masked = fields.get("return_attention_mask", False)
        return SoundSpec(kind, rate, fields.get("do_normalize", True), masked)
    if kind == "log_mel":
        frames = fields.get("chunk_length", 30) * rate // _HOP
        return SoundSpec(kind, rate, mels=fields.get("feature_size", 80), frames=frames)
    return SoundSpec(
        kind,
        rate,
        fields.get("do_normalize", True),
        mels=fields.get("num_mel_bins", 128),
        frames=fields.get("max_length", 1024),
        mean=fields.get("mean", SoundSpec.mean),
        std=fields.get("std", SoundSpec.std),
    )


class SoundTransform:
    """Records with a sound -> float32 arrays.

    A waveform is normalised by itself, before it is padded. Where nothing is masked, transformers counts the zeros of
    the padding in, so that a sound's values there depend on its neighbours; these are those of the sound alone.

    Args:
      spec: what to do.
      max_length: samples of a waveform at most; longer ones are cut there.
      hide: whether training hides stripes of a spectrogram, see `augment.specaugment`; what reads waveforms hides
        frames of its own.
    """

    def __init__(self, spec: SoundSpec, max_length: int, hide: bool = False):
        self._spec, self._max_length, self._hide = spec, max_length, hide
        # Without a mask a sound's values depend on its padding, so that all are padded alike; and a tenth of a second
        # is what the first layers of networks of waves have a use for.
        self.shortest = 1600 if spec.masked else None
        # What the arrays depend on beside the record; see `fingerprint`.
        self.identity = repr((spec, max_length, hide))

    def __call__(self, record: dict, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`{"sound": float32[n], "rate": int}` -> `{"input_values": float32[t]}` for a waveform, or a spectrogram
        float32[frames, mels]: `input_features` by `log_mel`, `input_values` by `filterbank`.

        The result depends on the sound and `rng` alone; None hides nothing.
        """
        spec, sound_T = self._spec, resampled(record["sound"], record["rate"], self._spec.rate)
        if spec.kind == "waveform":
            sound_T = sound_T[: self._max_length]
            return {"input_values": normalised(sound_T) if spec.normalise else sound_T}
        if spec.kind == "log_mel":
            name, bands_TM = "input_features", log_mel(sound_T, spec.mels, spec.frames)
        else:
            name, bands_TM = "input_values", filterbank(sound_T, spec.mels, spec.frames)
            if spec.normalise:
                bands_TM = (bands_TM - np.float32(spec.mean)) / np.float32(2 * spec.std)
        if self._hide and rng is not None:
            # A frame that begins within the sound.
            bands_TM = specaugment(bands_TM, min(-(-len(sound_T) // _HOP), spec.frames), rng)
        return {name: bands_TM}

    def lengths(self, examples: Examples) -> np.ndarray | None:
        """int32[N], samples of every waveform, for which all are decoded once; None for spectrograms, which are of one
        size."""
        if self._spec.kind != "waveform":
            return None
        return np.array([len(self(examples[i])["input_values"]) for i in range(len(examples))], np.int32)

    def collate(self, examples: list[dict], length: int | None = None) -> dict[str, np.ndarray]:
        """Arrays of one example, stacked; waveforms are padded by zeros to `length` (the longest when None), with
        `attention_mask` int32[B, length] where the spec is `masked`."""
        name = next(iter(examples[0]))
        if self._spec.kind != "waveform":
            return {name: np.stack([example[name] for example in examples])}
        counts = np.array([len(example[name]) for example in examples])
        length = length or int(counts.max())
        assert counts.max() <= length, (counts.max(), length)
        batch = {name: np.zeros((len(examples), length), np.float32)}
        for row, (example, count) in enumerate(zip(examples, counts)):
            batch[name][row, :count] = example[name]
        if self._spec.masked:
            batch["attention_mask"] = (np.arange(length) < counts[:, None]).astype(np.int32)
        return batch


def decode_sound(source: pathlib.Path, where: str) -> tuple[np.ndarray, int]:
    """The samples of a file, channels averaged, float32[T] within [-1, 1], and how many there are a second.

    Raises:
      UserError: not a sound that libsndfile knows, or an empty one; `where` names it.
    """
    import soundfile

    try:
        sound_TC, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(where, f"cannot be decoded: {' '.join(str(error).split())}", "replace or remove it") from error
    if not len(sound_TC):
        raise UserError(where, "holds no samples", "replace or remove it")
    return sound_TC.mean(axis=1), rate


def resampled(sound_T: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """float32[T] at `rate` -> float32[T * wanted / rate], by the SoX resampler."""
    if rate == wanted:
        return sound_T
    import soxr

    return soxr.resample(sound_T, rate, wanted)


def normalised(sound_T: np.ndarray) -> np.ndarray:
    """float32[T] -> the same with mean 0 and deviation 1; silence stays silence."""
    return (sound_T - sound_T.mean()) / np.sqrt(sound_T.var() + np.float32(1e-7))


def log_mel(sound_T: np.ndarray, mels: int, frames: int) -> np.ndarray:
    """Whisper's spectrogram: float32[T] at 16 kHz -> float32[frames, mels], a frame every 10 ms.

    Logarithms to base 10 that lie more than 8 below the loudest are raised to there; then (x + 4) / 4.
    """
    sound_T = np.pad(sound_T[: frames * _HOP], (0, max(frames * _HOP - len(sound_T), 0)))
    centred_T = np.pad(sound_T.astype(np.float64), _WINDOW // 2, mode="reflect")
    # One sample longer than is symmetric, so that it repeats without a double zero.
    power_TF = _power(_windows(centred_T)[:-1] * np.hanning(_WINDOW + 1)[:-1], _WINDOW)
    log_TM = np.log10(np.maximum(power_TF @ _slaney(_WINDOW // 2 + 1, mels), 1e-10))
    return ((np.maximum(log_TM, log_TM.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


def filterbank(sound_T: np.ndarray, mels: int, frames: int) -> np.ndarray:
    """Kaldi's log filterbank: float32[T] at 16 kHz -> float32[frames, mels], zeros after the last frame."""
    sound_T = np.pad(sound_T.astype(np.float64), (0, max(_WINDOW - len(sound_T), 0)))
    windows_TW = _windows(sound_T)[:frames]
    windows_TW = windows_TW - windows_TW.mean(axis=1, keepdims=True)
    before_TW = np.concatenate([windows_TW[:, :1], windows_TW[:, :-1]], axis=1)
    power_TF = _power((windows_TW - 0.97 * before_TW) * np.hanning(_WINDOW), 512)
    log_TM = np.log(np.maximum(power_TF @ _kaldi(257, mels), np.finfo(np.float32).eps))
    return np.pad(log_TM, ((0, frames - len(log_TM)), (0, 0))).astype(np.float32)


def _windows(sound_T: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(sound_T, _WINDOW)[::_HOP]


def _power(windows_TW: np.ndarray, size: int) -> np.ndarray:
    return np.abs(np.fft.rfft(windows_TW, size)) ** 2


@functools.cache
def _slaney(bins: int, mels: int) -> np.ndarray:
    """float64[bins, mels]: triangles of equal area, even below 1 kHz and then in steps of equal ratio (Slaney 1998)."""
    step = np.log(6.4) / 27
    points = np.linspace(0.0, 15 + np.log(8000 / 1000) / step, mels + 2)
    hertz = np.where(points < 15, points * 200 / 3, 1000 * np.exp(step * (points - 15)))
    return _triangles(np.linspace(0, 8000, bins), hertz) * 2 / (hertz[2:] - hertz[:-2])


@functools.cache
def _kaldi(bins: int, mels: int) -> np.ndarray:
    """float64[bins, mels]: triangles of equal height, even in mel from 20 Hz to 8 kHz."""

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    return _triangles(mel(np.linspace(0, 8000, bins)), np.linspace(mel(20.0), mel(8000.0), mels + 2))


def _triangles(at_F: np.ndarray, corners: np.ndarray) -> np.ndarray:
    rise = (at_F[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    fall = (corners[2:] - at_F[:, None]) / np.diff(corners)[1:]
    return np.maximum(0, np.minimum(rise, fall))
