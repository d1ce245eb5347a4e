# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The plan for a pod that is not there: its devices' memory, and what they send each other."""

import json

import makers
import pytest

from tl_jax import costs
from tl_jax.parallel import topologies

_LORA = {"plan__preset": "lora", "plan__rank": 2, "plan__lr": ()}
# Losses, weights and metrics of a step, each a number or two.
_NUMBERS = 64


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """A BERT of which `fsdp` shares three leaves out, with adapters."""
    home = tmp_path_factory.mktemp("pod")
    exp = makers.changed(makers.text_run(home), **_LORA, data__buckets=())
    makers.bert(home / "wide", hidden_size=64, intermediate_size=256, vocab_size=512, num_attention_heads=4)
    return makers.changed(exp, model__pretrained=str(home / "wide"), plan__dropout="none")


@pytest.fixture(scope="module")
def reports(exp):
    """On eight GPUs that copy the parameters, and on eight that share them out."""
    pod = topologies.parse("h100:1x8")
    sharded = makers.changed(exp, mesh__data=1, mesh__fsdp=8)
    return {"data": costs.report(exp, pod), "fsdp": costs.report(sharded, pod)}


def test_sharing_out_shrinks_what_a_device_holds(reports):
    """The frozen leaves of 2**14 numbers and more are held by an eighth."""
    data, fsdp = (reports[name].figures.memory for name in ("data", "fsdp"))
    large = 4 * (512 * 64 + 2 * 64 * 256)
    assert data["frozen"] - fsdp["frozen"] == large - large // 8
    assert reports["data"].figures.memory_limit == 80 * 10**9


def test_only_trained_leaves_are_summed_over_devices(reports):
    """With adapters the devices send each other the gradients of adapters and head, of nothing that is frozen."""
    found = reports["data"].figures
    assert set(found.collectives) == {"all-reduce"}
    assert 0 <= found.collectives["all-reduce"].nbytes - 4 * found.trained_parameters <= _NUMBERS
    assert found.trained_parameters < found.total_parameters / 50


def test_leaves_that_are_shared_out_are_gathered(reports):
    """And then there are collectives of other kinds too."""
    assert reports["fsdp"].figures.collectives["all-gather"].nbytes > 0


def test_the_text_says_that_devices_are_simulated(reports):
    """Which figures are exact, and what every device does."""
    text = reports["data"].text
    assert text.startswith("compiled for 8 simulated CPU devices in place of h100:1x8: what parameters, optimizer")
    assert "devices: 8, " in text and "leave on a device: all-reduce " in text and "of 80.0 GB" in text


def test_the_command_line_prints_it_or_one_line(exp, tmp_path):
    """The figures as JSON; a pod or a mesh that cannot be is exit 2."""
    file = makers.write_config(exp, tmp_path / "lora.json")
    plan = ("plan", f"--config={file}")
    code, out, err = makers.cli_run(*plan, "--topology=h100:1x8", "--json", "--config.mesh.data=8")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["collectives"]["all-reduce"]["nbytes"] >= 4 * found["trained_parameters"], err
    for words, message in (
        (("--topology=h100",), "says no sides"),
        (("--topology=h100:1x8", "--config.mesh.data=4"), "needs 4 devices, there are 8"),
    ):
        code, _, err = makers.cli_run(*plan, *words)
        assert code == 2 and message in err and err.count("\n") == 1
