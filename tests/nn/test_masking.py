# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What networks of raw waves hide while they train: how much, what stands in its place, and what asks for it."""

import dataclasses
import json

import jax
import numpy as np
import published.hubert
import published.wav2vec2
import published.wavlm
import pytest
import references
import soundfile

import tl_jax
from tl_jax.config import Data, Experiment, Model, Phase, Plan, Train
from tl_jax.core import chain
from tl_jax.core.chain import EVAL, Mode
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.nn import waves
from tl_jax.nn.spans import spans


@pytest.fixture(scope="module")
def hf():
    """(torch, transformers)."""
    return references.quiet("torch", "transformers")


@pytest.mark.parametrize(("share", "length", "least"), [(0.05, 10, 2), (0.3, 10, 0), (0.65, 4, 1)])
def test_spans_are_distributed_as_those_of_transformers(hf, share, length, least):
    """Of rows of three lengths: hidden positions a row and how often each position is hidden, over 400 draws. Where a
    row gets no span theirs hides the last position of the padding, which is left out here."""
    theirs = hf[1].models.wav2vec2.modeling_wav2vec2._compute_mask_indices
    lengths, size, draws = np.array([100, 60, 13]), 100, 400
    mask = hf[0].from_numpy((np.arange(size) < lengths[:, None]).astype(np.int64))
    np.random.seed(0)
    expected = np.stack([theirs((3, size), share, length, mask, least) for _ in range(draws)]) & mask.numpy().astype(
        bool
    )
    keys = jax.random.split(jax.random.key(0), draws)
    found = np.asarray(jax.vmap(lambda key: spans(lengths, size, share, length, least, key))(keys))
    counts = [hidden.sum(axis=2) for hidden in (expected, found)]
    # Five standard errors of the difference of two means; some rows have no variance.
    error = 5 * np.sqrt(sum(count.var(axis=0) for count in counts) / draws) + 1e-9
    assert (np.abs(counts[0].mean(axis=0) - counts[1].mean(axis=0)) <= error).all()
    rates = [hidden.mean(axis=0) for hidden in (expected, found)]
    # 300 positions are looked at, so that one may well lie 4.5 standard errors apart.
    error = 5 * np.sqrt(sum(rate * (1 - rate) for rate in rates) / draws) + 1e-9
    assert (np.abs(rates[0] - rates[1]) <= error).all()


QUIET = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop", "final_dropout"),
    0.0,
)
SHARES = {"mask_time_prob": 0.2, "mask_time_length": 4, "mask_feature_prob": 0.3, "mask_feature_length": 3}
# A default that the config of WavLM lacks in `transformers`.
SHARES |= {"mask_feature_min_masks": 0}


@pytest.mark.parametrize(("family", "name"), [("wav2vec2", "Wav2Vec2"), ("hubert", "Hubert"), ("wavlm", "WavLM")])
def test_a_masked_forward_is_that_of_transformers(hf, monkeypatch, tmp_path, family, name):
    """In training mode, both given the same masks of frames and of channels; the learned vector comes from the file."""
    torch, transformers = hf
    module = getattr(transformers.models, family)
    module = getattr(module, f"modeling_{family}")
    cls = getattr(transformers, f"{name}Model")
    torch.manual_seed(0)
    fields = getattr(published, family).BASE | QUIET | SHARES
    reference = cls(cls.config_class(**fields)).train()
    reference.save_pretrained(tmp_path)
    loaded = tl_jax.load_pretrained(tmp_path)
    assert not loaded.receipt.fresh and not loaded.receipt.ignored

    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 400)).astype(np.float32)
    time = loaded.model.config.frames(400)
    masks = {time: rng.random((2, time)) < 0.3, 16: rng.random((2, 16)) < 0.3}
    monkeypatch.setattr(module, "_compute_mask_indices", lambda shape, *_, **__: masks[shape[1]])
    monkeypatch.setattr(waves, "spans", lambda lengths, size, *_: masks[size])
    with torch.no_grad():
        expected = reference(torch.from_numpy(values)).last_hidden_state
    chains, params = chain.split(loaded.model)
    quick = {"xla_backend_optimization_level": 0}

    def run(params, mode):
        batch, key = {"input_values": values}, jax.random.key(0)
        return chain.run_chains(loaded.model, chains, params, batch, lambda _: mode, key)[0]["last_hidden_state"]

    found, plain = (
        np.asarray(jax.jit(run, static_argnums=1, compiler_options=quick)(params, mode))
        for mode in (Mode(dropout=True), EVAL)
    )
    assert np.abs(found - plain).max() > 0.1
    # Float32 sums of a few dozen terms in another order, through two blocks.
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.fixture
def experiment(tmp_path):
    """A head on a small frozen network, over two sounds of two classes."""
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(size=400) / 9, 16_000)
    (tmp_path / "train.tsv").write_text("path\tlabel\n" + "".join(f"{name}.wav\t{name}\n" for name in "ab"))
    fields = published.wav2vec2.BASE | {"model_type": "wav2vec2"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "preprocessor_config.json").write_text('{"feature_extractor_type": "Wav2Vec2FeatureExtractor"}')
    data = Data("sounds", path=str(tmp_path), validation=0, test=0, max_length=400, augment=("specaugment",))
    return Experiment(
        model=Model(str(tmp_path), init="random"),
        data=data,
        plan=Plan("linear_probe"),
        train=Train(batch_size=2, steps=1),
    )


@pytest.mark.usefixtures("one_device")
def test_asked_for_spans_are_hidden_by_a_frozen_stage_too(experiment):
    """What draws is not below the cut; without the word a linear probe's stages all are."""
    engine = build(experiment)
    assert engine.plan.cut == {"": 0} and engine.plan.modes["stem"].dropout
    silent = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, augment=()))
    assert build(silent).plan.cut[""] > 2


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"mask_time_prob": 0.0}}, "config hides no spans. Set model.config.apply_spec_augment=True"),
        ({"model": {"apply_spec_augment": False}}, "config hides no spans"),
        ({"plan": Plan("linear_probe", dropout="none")}, "under plan.dropout=none nothing draws"),
        ({"phases": (Phase(Plan("linear_probe", dropout="none"), steps=1),)}, "under plan.dropout=none"),
        ({"augment": ("flip", "specaugment")}, "data.augment: flip cannot change sounds"),
    ],
)
def test_a_word_that_would_do_nothing_is_refused(experiment, fields, message):
    """In one line, before anything is read."""
    if "model" in fields:
        fields = {"model": dataclasses.replace(experiment.model, config=fields["model"])}
    if "augment" in fields:
        fields = {"data": dataclasses.replace(experiment.data, **fields)}
    with pytest.raises(UserError, match=message):
        build(dataclasses.replace(experiment, **fields))
