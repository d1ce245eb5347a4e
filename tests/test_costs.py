# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the plan verb says a run costs, against counts made by hand, on one device and on eight."""

import jax
import makers
import pytest

from tl_jax import costs, fitting
from tl_jax.config import Mesh
from tl_jax.engine import build
from tl_jax.parallel import mesh as meshes

# Multiplications and additions of one block of width 64, four heads and an MLP of 256, for one token of 16.
_WIDTH, _MLP, _TOKENS, _BATCH = 64, 256, 16, 8
_FORWARD = 2 * _BATCH * _TOKENS * (4 * _WIDTH**2 + 2 * _WIDTH * _MLP + 2 * _TOKENS * _WIDTH)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data and a checkpoint."""
    home = tmp_path_factory.mktemp("costs")
    makers.text_run(home)
    makers.bert(home / "wide", hidden_size=_WIDTH, intermediate_size=_MLP, vocab_size=512, num_attention_heads=4)
    return home


@pytest.fixture(scope="module")
def exp(home):
    """Full fine-tuning under AdamW, without buckets, so that one length is the only one."""
    return makers.changed(makers.text_run(home), model__pretrained=str(home / "wide"), data__buckets=())


def figures(exp, monkeypatch, devices: int):
    """Of a report on so many devices."""
    here = jax.devices()[:devices]
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda: here)
        return costs.report(exp)


@pytest.fixture(scope="module")
def by_devices(exp):
    """Reports on one device, on eight that share the parameters out, and on eight that copy them."""
    patch = pytest.MonkeyPatch()
    sharded = makers.changed(exp, mesh__data=1, mesh__fsdp=8)
    found = {"one": figures(exp, patch, 1)}
    # The largest batch is looked for on one device alone, as compiling for eight takes long.
    with patch.context() as here:
        here.setattr(fitting, "largest", lambda *_: fitting.Largest(8, 16, {}))
        return found | {"fsdp": figures(sharded, patch, 8), "data": figures(exp, patch, 8)}


def parameters(exp) -> dict[str, int]:
    """Numbers in every leaf."""
    _, params = costs.chain.split(build(exp).model)
    return {path: leaf.size for path, leaf in params.items()}


def test_memory_of_parameters_and_optimizer_is_counted(by_devices, exp):
    """float32 parameters, all trained; AdamW keeps two more numbers for each, and counters."""
    found, total = by_devices["one"].figures, sum(parameters(exp).values())
    assert found.total_parameters == found.trained_parameters == total
    assert found.memory["trained"] == 4 * total and found.memory["frozen"] == found.memory["statistics"] == 0
    assert 0 <= found.memory["optimizer"] - 2 * 4 * total <= 64


def test_a_batch_is_counted(by_devices):
    """Ids, mask, types, label, weight and number of every example, each of four bytes."""
    assert by_devices["one"].figures.memory["batch"] == _BATCH * 4 * (3 * _TOKENS + 3)
    assert by_devices["data"].figures.memory["batch"] * 8 == by_devices["one"].figures.memory["batch"]


def test_fsdp_shares_the_large_leaves_out(by_devices, exp):
    """A device holds an eighth of the leaves of at least 2**14 numbers, and all of the others."""
    sizes = parameters(exp).values()
    expected = 4 * sum(size // 8 if size >= 2**14 else size for size in sizes)
    assert by_devices["fsdp"].figures.memory["trained"] == expected
    assert by_devices["data"].figures.memory["trained"] == by_devices["one"].figures.memory["trained"]


def test_flops_are_those_of_the_matrix_products(by_devices):
    """Forward and twice that backward; norms, softmax, dropout and AdamW come on top, at this width less than half."""
    flops = by_devices["one"].figures.flops_per_step
    assert 3 * _FORWARD < flops < 1.5 * 3 * _FORWARD


def test_flops_are_over_all_devices(by_devices):
    """Eight devices with an eighth of the batch each do the work of one, and the update eight times."""
    one, eight = (by_devices[name].figures.flops_per_step for name in ("one", "data"))
    update = 40 * by_devices["one"].figures.total_parameters
    assert one * 0.95 < eight < one + 8 * update


def test_a_probe_costs_little_more_than_its_forward_pass(exp, monkeypatch):
    """No gradient of what is frozen: less than half of the FLOPs, and optimizer slots for the head alone."""
    probe = figures(makers.changed(exp, plan__preset="linear_probe"), monkeypatch, 1).figures
    head = 3 * (_WIDTH + 1)
    assert probe.trained_parameters == head and probe.memory["optimizer"] - 2 * 4 * head <= 64
    assert _FORWARD < probe.flops_per_step < 1.5 * _FORWARD
    assert probe.memory["frozen"] == 4 * (probe.total_parameters - head)


def test_accumulation_changes_no_flops(by_devices, exp):
    """Counted without the loop, whose body a compiler's figure counts once."""
    one = meshes.build(Mesh(1), jax.devices()[:1])
    engine, whole = build(makers.changed(exp, train__accumulate=4), mesh=one), by_devices["one"].figures
    flops = costs.compile_step(costs.without_loops(engine), _BATCH).cost_analysis()["flops"]
    assert flops == pytest.approx(whole.flops_per_step, rel=1e-6)
    portions = costs.memory_by_part(engine, _BATCH, costs.compile_step(engine, _BATCH))
    assert portions["temporaries"] < whole.memory["temporaries"]


def test_no_loop_hides_flops(exp, home):
    """Of portions, or of words that are scored a part at a time, another program is counted; else the run's own."""
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "eos_token_id": None, "bos_token_id": None}
    gpt2 = makers.network(home / "gpt2", {"model_type": "gpt2", "vocab_size": 32, **sizes})
    words = makers.changed(exp, model__pretrained=gpt2, model__fresh=(), task__name="language_model", task__options={})
    words = makers.changed(words, data__options={"label": None}, plan__lr=())
    assert costs.without_loops(build(exp)) is None
    for looped in (words, makers.changed(exp, train__batch_size=16, train__accumulate=2)):
        plain = costs.without_loops(build(looped))
        assert plain is not None and costs.without_loops(plain) is None


def test_the_peak_is_what_the_compiler_says(exp):
    """Arguments, temporaries and what is returned in memory of its own, but for arguments that no step reads."""
    engine = build(exp, mesh=meshes.build(Mesh(1), jax.devices()[:1]))
    compiled = costs.compile_step(engine, _BATCH)
    found = compiled.memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes + found.generated_code_size_in_bytes
    expected = found.argument_size_in_bytes + found.temp_size_in_bytes + new
    # The numbers of the examples, and what their token types would be.
    unread = _BATCH * 4 * (1 + _TOKENS)
    assert 0 <= sum(costs.memory_by_part(engine, _BATCH, compiled).values()) - expected <= unread


def test_the_batch_that_fits_was_compiled(by_devices):
    """It takes no more than there is, and at least nine tenths of it; one at most 5 % larger was refused."""
    found = by_devices["one"].figures
    assert 0.9 * found.memory_limit <= found.memory_that_fits <= found.memory_limit
    assert found.batch_size < found.batch_size_that_fits < found.batch_size_too_large
    assert found.batch_size_too_large <= 1.05 * found.batch_size_that_fits


def test_the_text_names_every_stage(by_devices):
    """The receipt, one row a stage, and the figures."""
    text = by_devices["one"].text
    for word in ("loaded   21 tensors", "| stem ", "| blocks/0 ", "| head ", "GFLOP a step", "largest batch that fits"):
        assert word in text, word


def test_steps_are_those_of_the_run(by_devices, exp, home):
    """What the plan announces is what an engine does."""
    engine = build(exp, mesh=meshes.build(Mesh(1), jax.devices()[:1]))
    found = by_devices["one"].figures
    assert (found.steps, found.steps_per_epoch) == (engine.steps, engine.steps_per_epoch) == (12, 6)
