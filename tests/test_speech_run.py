# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Speech to text from the config to the decoded text."""

import json
import shutil

import jax
import makers
import pytest

from tl_jax import evaluation, runs
from tl_jax.config import Data, Experiment, Mesh, Model, Optimizer, Plan, Task, Train
from tl_jax.engine import build
from tl_jax.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures("one_device")

_NETWORK = {
    "model_type": "wav2vec2",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [24] * 7,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "mask_time_prob": 0.0,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
CLIPS = {
    "LJ001-0008": "has never been surpassed.",
    "LJ001-0002": "in being comparatively modern.",
    "LJ001-0078": "to improve the letter in form.",
}


@pytest.fixture(scope="module")
def experiment(shared_data, tmp_path_factory):
    """A small network from scratch on clips of LJSpeech, up to two seconds long."""
    folder = tmp_path_factory.mktemp("speech")
    for name in CLIPS:
        shutil.copy(shared_data / "speech" / "lj_speech" / "wavs" / f"{name}.wav", folder)
    lines = ["path\ttranscript", *(f"{name}.wav\t{text}" for name, text in CLIPS.items())]
    (folder / "all.tsv").write_text("\n".join(lines))
    (folder / "one.tsv").write_text("\n".join(lines[:2]))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(_NETWORK))
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": True}
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(extractor))
    return Experiment(
        name="speech",
        model=Model(str(folder / "model"), init="random"),
        task=Task("ctc"),
        data=Data(
            "sounds",
            path=str(folder / "one.tsv"),
            options={"text": "transcript"},
            validation=0.0,
            test=0.0,
            max_length=32000,
            buckets=(29000,),
            threads=0,
        ),
        plan=Plan("full", dropout="none"),
        optimizer=Optimizer(learning_rate=4e-3, weight_decay=0.0),
        train=Train(batch_size=1, steps=140),
    )


def test_a_clip_is_written_down(experiment):
    """Over-fitted until no word is wrong: source, buckets, loss, greedy decoding and word error rate together."""
    engine = build(experiment, meshes.build(Mesh(), jax.devices()[:1]))
    state = engine.init()
    before = evaluation.measure(engine, state, engine.sets["train"]).metrics
    for batch in engine.train_batches(0, engine.steps):
        state, _ = engine.train_step(state, batch)
    found = evaluation.measure(engine, state, engine.sets["train"]).metrics
    assert before["wer"] > 0.5 and found["wer"] == 0.0 and found["cer"] == 0.0
    rows = engine.task.predictions(evaluation.outputs(engine, state, engine.sets["train"]))
    assert [row["text"] for row in rows] == list(CLIPS.values())[:1]


def test_a_run_of_it_is_judged_by_its_word_error_rate(experiment, tmp_path):
    """The smaller the better; the summary has it with an interval, and the run comes back."""
    path = experiment.data.path.replace("one.tsv", "all.tsv")
    split = {"data__path": path, "data__validation": 0.34, "data__test": 0.33}
    # Half a second tells nothing of the words, but one size of input compiles one program.
    split |= {"data__max_length": 8000, "data__buckets": ()}
    exp = makers.changed(experiment, train__steps=1, train__batch_size=8, train__eval_batch_size=8, **split)
    summary = runs.run(exp, tmp_path / "run", quiet=True)
    assert summary["metric"] == "wer" and summary["test"]["wer"] > 0
    low, high = summary["intervals"]["test"]["wer"]
    assert low <= summary["test"]["wer"] <= high
    assert runs.load_run(tmp_path / "run").model is not None
