# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Runs whose blocks are held as one: the same training, checkpoints and exports that know nothing of it."""

import dataclasses

import jax
import makers
import numpy as np
import pytest
import resuming

import tl_jax
from tl_jax import costs, runs
from tl_jax.config import Phase, Plan
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.report import metrics

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """Six steps of a BERT of four blocks, with rates that differ from block to block, by plain SGD: Adam would blow a
    difference in the last bit up."""
    home = tmp_path_factory.mktemp("stacked")
    makers.bert(home / "bert", num_hidden_layers=4)
    makers.texts(home / "texts.tsv")
    exp = makers.text_run(home, epochs=1, log_every=1, restore_best=False)
    exp = makers.changed(exp, data__buckets=(), optimizer__name="sgd", optimizer__learning_rate=0.02)
    return makers.changed(exp, plan__layer_decay=0.5, model__drop_path=0.2, train__scan="on")


def losses(workdir) -> list[float]:
    """The training loss of every step."""
    return [line["loss"] for line in metrics.read(workdir) if line["kind"] == "train"]


def assert_same_training(exp, other, home):
    """Every loss to 1e-5, and what is exported to 1e-5."""
    for name, one in (("ours", exp), ("other", other)):
        runs.run(one, home / name, quiet=True)
    np.testing.assert_allclose(losses(home / "ours"), losses(home / "other"), rtol=1e-5)
    ours, theirs = (runs.open_run(home / name)[1].params for name in ("ours", "other"))
    assert ours.keys() == theirs.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_training_is_that_of_single_blocks(exp, tmp_path):
    """With dropout, drop path, layer decay and weight decay."""
    assert build(exp).stacks and not build(makers.changed(exp, train__scan="off")).stacks
    assert_same_training(exp, makers.changed(exp, train__scan="off"), tmp_path)


def test_adapters_over_a_quantised_base_train_alike(exp, tmp_path):
    """Codes and scales are stacked as other leaves are."""
    exp = makers.changed(exp, plan__preset="lora", plan__layer_decay=None, plan__quantize="int8")
    assert_same_training(exp, makers.changed(exp, train__scan="off"), tmp_path)


def test_a_frozen_prefix_is_a_stack_of_its_own(exp, tmp_path):
    """Two blocks on either side of the cut, whose activations are kept."""
    exp = makers.changed(exp, plan__preset="last_n", plan__n=2, plan__layer_decay=None, train__epochs=2)
    stacks = {path.split("/attn")[0] for path in build(exp).stacks.members if "/attn/" in path}
    assert stacks == {"blocks/0..1", "blocks/2..3"}
    assert_same_training(exp, makers.changed(exp, train__scan="off"), tmp_path)


def test_only_blocks_above_the_cut_are_computed_again(exp):
    """What lies below has no backward pass; `core` has the mechanism."""
    last = makers.changed(exp, plan__preset="last_n", plan__n=1, plan__layer_decay=None, train__remat="block")
    modes = build(last).plan.modes
    assert [name for name, mode in modes.items() if mode.remat == "block"] == ["blocks/3"]


def test_a_run_broken_off_goes_on_as_the_unbroken_one(exp, tmp_path):
    """Through phases in which other blocks are alike; averages, anchors and Adam's moments bit for bit."""
    exp = makers.changed(exp, optimizer__name="adamw", train__ema=0.9, train__l2_sp=0.1, train__save_every=4)
    exp = dataclasses.replace(exp, phases=(Phase(Plan(train=("blocks/[0-2]/.*",)), epochs=1),))
    runs.run(exp, tmp_path / "unbroken", quiet=True)
    resuming.broken_off(exp, tmp_path / "broken", (8,))
    resuming.assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


def test_a_run_goes_on_without_stacks(exp, tmp_path):
    """A checkpoint has single paths: begun stacked, ended single, it is the same training."""
    single = makers.changed(exp, train__scan="off")
    runs.run(single, tmp_path / "single", quiet=True)
    exp = makers.changed(exp, train__save_every=3)
    with pytest.raises(resuming.PowerCut):
        runs.run(exp, tmp_path / "mixed", callbacks=[resuming.Cutting(4)], quiet=True)
    runs.run(makers.changed(exp, train__scan="off"), tmp_path / "mixed", quiet=True)
    np.testing.assert_allclose(losses(tmp_path / "mixed"), losses(tmp_path / "single"), rtol=1e-5)


def test_the_adapted_network_has_single_paths(exp, tmp_path):
    """What a training engine makes of its state is callable and saves the published layout."""
    engine = build(exp)
    state = engine.init()
    (batch,) = engine.train_batches(0, 1)
    state, _ = engine.train_step(state, batch)
    expected = engine.eval_step(state, batch)["logits"]
    engine.to_pretrained(state).save(tmp_path / "adapted")
    model = tl_jax.load_pretrained(str(tmp_path / "adapted"))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(model(inputs)["logits"], expected, atol=1e-5)


def test_plan_counts_what_a_scan_does(exp):
    """A compiler's count holds a loop's body once; what is counted instead has every block. Memory is as large."""
    ours, single = (build(makers.changed(exp, train__scan=scan)) for scan in ("on", "off"))
    assert costs.without_loops(single) is None
    found, expected = (costs.compile_step(engine, 8) for engine in (costs.without_loops(ours), single))
    assert found.cost_analysis()["flops"] == pytest.approx(expected.cost_analysis()["flops"], rel=0.01)
    memory = [costs.memory_by_part(engine, 8, expected) for engine in (ours, single)]
    assert memory[0] == memory[1]


def test_an_optimizer_that_measures_kernels_trains_no_stack(exp):
    """LAMB's trust ratio of a stack would be another; frozen blocks may still be held as one."""
    exp = makers.changed(exp, optimizer__name="lamb")
    with pytest.raises(UserError, match="train.scan.*lamb measures every kernel"):
        build(exp)
    frozen = makers.changed(exp, plan__preset="linear_probe", plan__layer_decay=None)
    assert {path.split("/")[1] for path in build(frozen).stacks.members} == {"0..3"}


def test_auto_leaves_blocks_alone_on_a_cpu(exp):
    """There a deep network's step takes longer so."""
    assert not build(makers.changed(exp, train__scan="auto")).stacks
