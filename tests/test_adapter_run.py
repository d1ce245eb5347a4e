# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run with LoRA on a small BERT: what moves, what is saved, that it goes on bit for bit, and what is exported."""

import json

import makers
import numpy as np
import pytest
import references
import resuming
from safetensors.numpy import load_file

import tl_jax
from tl_jax import runs
from tl_jax.config import Adapter
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.plan import adapters

pytestmark = pytest.mark.usefixtures("one_device")

_PLAN = {"plan__preset": "lora", "plan__rank": 2, "plan__lr": ((".*/lora/b/kernel", 16.0), ("head/.*", 2.0))}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of this module's data, base and runs."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def exp(home):
    """LoRA on queries and values with LoRA+, 20 steps."""
    exp = makers.text_run(home, epochs=None, steps=20, save_every=10, eval_every=10)
    return makers.changed(exp, task__options={"pool": "pooler"}, data__buckets=(), **_PLAN)


@pytest.fixture(scope="module")
def finished(home, exp):
    """(workdir, summary) of a run that nothing stopped."""
    return home / "run", runs.run(exp, home / "run", quiet=True)


@pytest.fixture(scope="module")
def adapted(finished):
    """Its network."""
    return tl_jax.load_run(finished[0])


def test_only_adapters_and_head_move(finished, adapted, exp):
    """Every other parameter has the bits of the base after 20 steps; all adapters and the head have moved."""
    _, start = build(exp).init_with_receipt()
    moved = {path for path, leaf in adapted.params.items() if not np.array_equal(leaf, start.params[path])}
    ours = {path for path in adapted.params if adapters.is_adapter(path)}
    assert moved == {*ours, "head/kernel", "head/bias"}
    # a [16, 2] and b [2, 16] of two kernels, and the head [16, 3] with its bias.
    assert finished[1]["trained_parameters"] == 2 * (16 * 2 + 2 * 16) + 16 * 3 + 3


def test_a_checkpoint_holds_adapters_and_head_only(finished, exp):
    """The leaves that are saved: what trains, its two moments, and a few counters."""
    manifest = json.loads((finished[0] / "checkpoints" / f"{finished[1]['steps']}.json").read_text())
    sizes = {path: 4 * int(np.prod(shape)) for path, (_, shape) in manifest["leaves"].items()}
    assert sum(size for size in sizes.values() if size > 4) == 3 * 4 * finished[1]["trained_parameters"]
    assert not any("/word/" in path for path in sizes)


def test_a_stopped_run_goes_on_bit_for_bit(finished, exp, tmp_path):
    """Broken off after step 6 and started again, it is the run that was left alone."""
    resuming.broken_off(exp, tmp_path / "run", steps=(6,))
    resuming.assert_same_run(tmp_path / "run", finished[0])


def test_a_network_with_adapters_is_not_saved_as_published(adapted, tmp_path):
    """It would lose them; the line says what to do, and nothing is written."""
    with pytest.raises(UserError, match=r"no place for adapters.*merge\(\).*--format=peft"):
        adapted.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_exported_network_is_the_merged_one(finished, adapted, tmp_path):
    """What is read back has no adapters and the same outputs; unchanged tensors keep their bytes."""
    code, out, err = makers.cli_run("export", f"--workdir={finished[0]}", f"--to={tmp_path / 'hf'}")
    assert code == 0 and "folded into its kernels" in out, err
    batch = {"input_ids": np.arange(1, 13).reshape(2, 6)}
    back = tl_jax.load_pretrained(tmp_path / "hf")
    assert not adapters.installed(back.model)
    # One product of two small factors more or less, in float32.
    np.testing.assert_allclose(back(batch)["logits"], adapted(batch)["logits"], atol=1e-5)
    for name in ("stem/word/embedding", "blocks/0/attn/key/kernel", "blocks/0/mlp/up/kernel"):
        np.testing.assert_array_equal(back.params[name], adapted.params[name])
    assert 0 <= adapted.merge(batch).difference < 1e-5


def test_the_exported_adapter_is_what_peft_reads(finished, adapted, exp, tmp_path):
    """The base in `transformers` with the exported adapter and head gives the run's logits."""
    code, out, err = makers.cli_run("export", f"--workdir={finished[0]}", f"--to={tmp_path / 'a'}", "--format=peft")
    assert code == 0 and "PeftModel" in out, err
    ids = np.arange(1, 13).reshape(2, 6)
    expected = references.peft_logits(exp.model.pretrained, tmp_path / "a", ids)
    np.testing.assert_allclose(adapted({"input_ids": ids})["logits"], expected, atol=1e-4)


def test_a_run_goes_on_from_the_network_of_another(finished, adapted, exp, tmp_path):
    """A run whose base is a run with adapters starts from the merged kernels: they are written before it begins."""
    with pytest.raises(UserError, match="nowhere"):
        runs.run(makers.changed(exp, model__pretrained=str(finished[0]), data__path="nowhere"), tmp_path, quiet=True)
    found = load_file(finished[0] / "model" / "model.safetensors")["bert.encoder.layer.0.attention.self.query.weight"]
    np.testing.assert_array_equal(found.T, adapted.merge().params["blocks/0/attn/query/kernel"])


def test_dora_begins_with_the_lengths_in_the_loaded_kernels(exp):
    """And so with the outputs of the base: not with those of the random kernels that a network is built with."""
    rules = ((r"blocks/.*/(query|up)/kernel", Adapter("dora", rank=2)),)
    engine = build(makers.changed(exp, plan__preset=None, plan__rank=None, plan__lr=(), plan__adapters=rules))
    params = engine.init().params
    for layer in ("blocks/0/attn/query", "blocks/0/mlp/up"):
        expected = np.linalg.norm(np.asarray(params[f"{layer}/kernel"], np.float64), axis=0)
        np.testing.assert_allclose(params[f"{layer}/lora/magnitude"], expected, rtol=1e-6)


def test_adapters_can_be_named_on_the_command_line(exp):
    """As plain data, as `config.json` keeps them."""
    value = "[(r'blocks/.*/mlp/(up|down)/kernel', {'kind': 'dora', 'rank': 3})]"
    other = tl_jax.config.override(exp, {"plan.preset": None, "plan.rank": None, "plan.adapters": value, "plan.lr": ()})
    assert other.plan.adapters == ((r"blocks/.*/mlp/(up|down)/kernel", Adapter("dora", rank=3)),)
    assert tl_jax.config.from_dict(tl_jax.config.to_dict(other)) == other
