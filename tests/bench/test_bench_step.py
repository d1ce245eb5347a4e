# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The verb `bench`: what it counts, against counts made by hand; nothing here is timed."""

import dataclasses
import json

import makers
import numpy as np
import pytest

from tl_jax import config
from tl_jax.bench import peak, report, step, synthetic
from tl_jax.config import Data, Experiment, Model, Plan, Task, Train
from tl_jax.core import chain
from tl_jax.data import pipeline

pytestmark = pytest.mark.usefixtures("one_device")

# Multiplications and additions of one block of width 64, four heads and an MLP of 256, for one token of 16.
_WIDTH, _MLP, _TOKENS, _BATCH = 64, 256, 16, 8
_FORWARD = 2 * _BATCH * _TOKENS * (4 * _WIDTH**2 + 2 * _WIDTH * _MLP + 2 * _TOKENS * _WIDTH)
_GPT2 = {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data and a checkpoint wide enough for its products to be most of the work."""
    home = tmp_path_factory.mktemp("bench")
    makers.text_run(home)
    makers.bert(home / "wide", hidden_size=_WIDTH, intermediate_size=_MLP, vocab_size=512, num_attention_heads=4)
    return home


@pytest.fixture(scope="module")
def probe(home):
    """What the command line says of a head alone on texts, measured in two steps."""
    exp = makers.changed(makers.text_run(home), model__pretrained=str(home / "wide"), plan__preset="linear_probe")
    file = makers.write_config(exp, home / "probe.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "_SIZES", (64,))
        code, out, err = makers.cli_run("bench", f"--config={file}", "--steps=2", "--json")
    assert code == 0, err
    return exp, json.loads(out.splitlines()[-1])


def test_every_figure_is_in_the_json(probe):
    """With the number of steps, the version and where the examples came from."""
    _, found = probe
    assert set(found) == {field.name for field in dataclasses.fields(step.Figures)} | {
        "data",
        "steps",
        "jax",
        "against",
    }
    assert found["against"] is None
    assert (found["steps"], found["data"], found["batch_size"], found["length"]) == (2, "table", _BATCH, _TOKENS)


def test_a_head_costs_a_forward_pass(probe):
    """Products of the forward pass by hand, and at most half as much again for norms, softmax and the head's update."""
    _, found = probe
    assert _FORWARD < found["flops"] < 1.5 * _FORWARD
    assert found["trained_parameters"] == 3 * (_WIDTH + 1)


def test_figures_agree_with_each_other(probe):
    """Rates, MFU, padding, threads and steps of a checkpoint are quotients of what was measured."""
    _, found = probe
    seconds = found["step_ms"]["median"] / 1e3
    assert found["examples_per_second"] == pytest.approx(_BATCH / seconds)
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / seconds)
    assert found["mfu"] == pytest.approx(found["flops"] / seconds / found["peak_flops"])
    assert found["checkpoint_steps"] == pytest.approx(found["checkpoint_ms"] / 1e3 / seconds)
    assert found["padding"] == pytest.approx(1 - found["tokens"] / (_BATCH * _TOKENS))
    needed = found["examples_per_second"] / found["input_core_examples_per_second"]
    assert found["threads_needed"] - 1 < needed <= found["threads_needed"]
    assert found["step_ms"]["p10"] <= found["step_ms"]["median"] <= found["step_ms"]["p90"]


def test_a_checkpoint_holds_what_trains(probe):
    """The head and its two slots, not the backbone; Orbax's own files come on top."""
    _, found = probe
    assert 3 * 4 * found["trained_parameters"] < found["checkpoint_bytes"] < 4 * found["total_parameters"]


def test_what_cannot_be_measured_is_none(probe):
    """A CPU counts no memory and has no data sheet; the process then says what it held."""
    _, found = probe
    assert found["device_peak_bytes"] is None and found["vendor_flops"] is None
    assert found["process_peak_bytes"] > 1e8


def test_tokens_are_counted_without_padding(probe):
    """Of the first batch, by splitting its texts at blanks; the tokenizer adds one before and one after."""
    exp, found = probe
    engine = step.bench_engine(exp, None)
    indices, _, length = engine.train_plan.batch(0)
    texts = [engine.sets["train"][index]["text"] for index in indices]
    assert found["tokens"] == sum(len(text.split()) + 2 for text in texts) < _BATCH * length
    assert length == _TOKENS


def test_buffers_are_the_arrays_of_the_step(probe):
    """Every leaf, two slots for each of the head's two, one or two counters, the step, the key, and the batch's ids,
    mask, types, labels, weights and numbers."""
    exp, found = probe
    leaves = len(chain.split(step.bench_engine(exp, None).model)[1])
    assert leaves + 2 * 2 + 1 + 2 + 6 <= found["buffers"] <= leaves + 2 * 2 + 2 + 2 + 6


def test_the_spread_of_a_known_list():
    """Percentiles of 1 to 11 ms, in any order."""
    seconds = np.random.default_rng(0).permutation(np.arange(1, 12)) / 1e3
    assert step.spread(seconds) == pytest.approx({"median": 6.0, "p10": 2.0, "p90": 10.0})


def test_a_table_leaves_blank_what_was_not_measured(probe):
    """No zero, no guess."""
    _, found = probe
    blank = {"input_examples_per_second": None, "checkpoint_bytes": None, "checkpoint_ms": None, "tokens": None}
    blank |= {"threads_needed": None, "padding": None}
    text = report._text({**found, **blank, "tokens_per_second": None, "length": None})
    rows = dict(tuple(map(str.strip, line.split("|")[1:3])) for line in text.splitlines())
    for name in (
        "tokens",
        "padding",
        "input alone",
        "input of one core",
        "checkpoint",
        "save holds the loop up",
        "peak by the vendor",
    ):
        assert rows[name] == "", name
    assert rows["batch"] == str(_BATCH) and rows["step"].endswith("2 steps")


def test_one_core_reads_in_the_thread_that_asks(home, monkeypatch):
    """Its rate is that of no reading thread, and the pipeline's that of those that the config has."""
    asked = []

    def noted(*given, threads, **options):
        asked.append(threads)
        return batches(*given, threads=threads, **options)

    batches = pipeline.batches
    monkeypatch.setattr(pipeline, "batches", noted)
    engine = step.bench_engine(makers.changed(makers.text_run(home), data__threads=3), None)
    found = step._input(engine, 1, step_rate=1e-3, reads=True)
    assert sorted(asked) == [0, 3] and found["threads_needed"] == 1
    assert step._input(engine, 1, step_rate=1e-3, reads=False) == dict.fromkeys(found)


def test_a_table_says_how_many_threads_a_step_needs(probe, monkeypatch):
    """And how many cores there are, where these are fewer."""
    _, found = probe
    monkeypatch.setattr(report.reading, "cores", lambda: 4)
    rows = [report._core({**found, "input_core_examples_per_second": 2.5, "threads_needed": n}) for n in (4, 5)]
    assert rows == [
        "2.5 examples a second: the step needs data.threads=4",
        "2.5 examples a second: the step needs data.threads=5, and there are 4 cores",
    ]


def test_tokens_of_rows_are_counted_without_padding():
    """By their segments, as they have no mask."""
    segments = np.array([[1, 1, 2, 0], [1, 0, 0, 0]])
    assert step.count_tokens({"input_ids": np.zeros((2, 4)), "segments": segments}) == 4


@pytest.mark.parametrize("packing", [False, True])
def test_synthetic_texts_need_no_tokenizer(packing):
    """A GPT-2 from scratch: every token counts, and the next one is its label; rows that a text fills are packed."""
    exp = Experiment(
        model=Model(family="gpt2", config=_GPT2),
        task=Task("language_model"),
        data=Data(max_length=10, packing=packing),
        plan=Plan("full"),
        train=Train(batch_size=3, steps=5),
    )
    batch = step.first_batch(step.bench_engine(exp, num_classes=2))
    assert step.count_tokens(batch) == 30 and batch["label"].shape == (3, 10) and ("segments" in batch) == packing
    np.testing.assert_array_equal(batch["input_ids"][:, 1:], batch["label"][:, :-1])
    assert 0 <= batch["input_ids"].min() and batch["input_ids"].max() < 40


def test_synthetic_images_have_the_networks_size(tmp_path):
    """Of the asked number of classes, as many as a batch, and the file of the config is not read."""
    exp = makers.changed(makers.image_run(tmp_path), data__path=str(tmp_path / "nowhere"))
    engine = step.bench_engine(exp, num_classes=5)
    batch = step.first_batch(engine)
    assert batch["pixel_values"].shape == (16, 8, 8, 3) and len(engine.task.classes) == 5
    assert step.count_tokens(batch) is None and (np.asarray(batch["weight"]) == 1).all()


@pytest.mark.parametrize(
    "words,message",
    [
        (["--steps=0"], "--steps: is 0"),
        (["--synthetic", "--classes=1"], "--classes: is 1"),
        (["--synthetic", "--config.task.name=ctc"], "--synthetic"),
        (["more"], "one word too many for bench"),
    ],
)
def test_mistakes_are_told_in_one_line(home, words, message):
    """Before anything is built."""
    file = makers.write_config(makers.text_run(home), home / "wrong.json")
    code, out, err = makers.cli_run("bench", f"--config={file}", *words)
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and message in err, err


def test_vendors_figures_go_by_the_longest_name():
    """An H100 of PCIe is slower; unknown devices have none."""
    assert peak.vendor("NVIDIA H100 PCIe", "bfloat16") < peak.vendor("NVIDIA H100 80GB HBM3", "bfloat16")
    assert peak.vendor("TPU v5 lite", "bfloat16") < peak.vendor("TPU v5", "bfloat16")
    assert peak.vendor("cpu", "float32") is None and peak.vendor("TPU v4", "float32") is None


def test_random_parts_are_the_seeds():
    """The same seed draws the same, another does not."""
    exp = Experiment(model=Model(family="resnet", config=makers.RESNET), train=Train(batch_size=2, steps=1))
    exp = config.override(exp, {"data.image_size": 8})
    one, two, other = (
        synthetic.parts(dataclasses.replace(exp, seed=seed), 2)["data"]["train"][0]["image"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
