# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One run on other meshes: the same batches, the same losses and gradients, parameters that are really sharded.

Five steps of a BERT whose larger leaves `fsdp` splits, on one device, on eight in four arrangements, and on two
processes. Under SGD, because Adam divides small gradients by their own size and so shows rounding as a difference.
"""

import json
import re

import jax
import makers
import numpy as np
import pytest

from tl_jax import config, costs
from tl_jax.engine import build
from tl_jax.parallel import mesh as meshes
from tl_jax.resident import Resident

MESHES = {
    "one device": config.Mesh(1),
    "data=8": config.Mesh(8),
    "fsdp=8": config.Mesh(1, 8),
    "data=2 fsdp=4": config.Mesh(2, 4),
    "fsdp=4 tensor=2": config.Mesh(1, 4, 2),
}
STEPS = 5

# The same five steps in one of two processes; what it saw goes to stdout.
_PROCESS = """
import json, sys
import numpy as np
from tl_jax import config
from tl_jax.parallel import processes
processes.start(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
from jax.experimental import multihost_utils
from tl_jax.engine import build
engine = build(config.load(sys.argv[1]))
state, ids, losses = engine.init(), [], []
for batch in engine.train_batches(0, int(sys.argv[4])):
    state, metrics = engine.train_step(state, batch)
    ids.append(multihost_utils.process_allgather(batch["id"], tiled=True).tolist())
    losses.append(float(metrics["loss"]))
held = {path: leaf.addressable_shards[0].data.size / leaf.size for path, leaf in state.trained.items()}
print(json.dumps({"ids": ids, "losses": losses, "held": held}))
"""


def wide(folder):
    """A BERT with leaves of at least 2**14 elements, dropout off, under SGD."""
    exp = makers.text_run(folder)
    if not (folder / "wide").exists():
        makers.bert(folder / "wide", hidden_size=64, intermediate_size=256, vocab_size=512, num_attention_heads=4)
    exp = makers.changed(exp, model__pretrained=str(folder / "wide"), plan__dropout="none", data__buckets=())
    return makers.changed(
        exp,
        optimizer__name="sgd",
        optimizer__learning_rate=0.05,
        optimizer__schedule="constant",
        optimizer__warmup=0.0,
    )


def steps(exp, mesh: config.Mesh) -> dict:
    """Five steps on the first devices that the mesh needs."""
    count = mesh.data * mesh.fsdp * mesh.tensor
    engine = build(exp, mesh=meshes.build(mesh, jax.devices()[:count]))
    state, found = engine.init(), {"engine": engine, "ids": [], "losses": []}
    for number, batch in enumerate(engine.train_batches(0, STEPS)):
        if number == 0:
            found |= {"first": batch, "grads": gradients(engine, state, batch)}
        state, metrics = engine.train_step(state, batch)
        found["ids"].append(np.asarray(batch["id"]).tolist())
        found["losses"].append(float(metrics["loss"]))
    return {**found, "state": state, "programs": engine.step.core._cache_size()}


def gradients(engine, state, batch) -> dict[str, np.ndarray]:
    """Of the first step's sum of losses, by path."""
    objective = engine.step.objective

    def loss(trained):
        crossing = objective.prefix(state.frozen, batch)
        return objective.loss(trained, state.frozen, state.stats, crossing, batch, state.key)[0]

    return jax.device_get(jax.jit(jax.grad(loss))(state.trained))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data and checkpoints."""
    return tmp_path_factory.mktemp("meshes")


@pytest.fixture(scope="module")
def runs(home):
    """What five steps gave on every mesh."""
    return {name: steps(wide(home), mesh) for name, mesh in MESHES.items()}


@pytest.fixture(scope="module")
def pair(home):
    """What two processes of one device each saw, with the parameters sharded over both."""
    file = makers.write_config(makers.changed(wide(home), mesh__data=1, mesh__fsdp=2), home / "pair.json")
    port = str(makers.free_port())
    done = makers.finish(*(makers.start("-c", _PROCESS, file, port, str(i), str(STEPS)) for i in range(2)))
    for rc, _, err in done:
        assert rc == 0, err
    return [json.loads(out.splitlines()[-1]) for _, out, _ in done]


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_every_mesh_sees_the_same_batches_and_losses(runs, name):
    """The ids are equal; the losses agree to 1e-5 relative, as sums over devices run in another order."""
    assert runs[name]["ids"] == runs["one device"]["ids"]
    np.testing.assert_allclose(runs[name]["losses"], runs["one device"]["losses"], rtol=1e-5)


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_every_mesh_finds_the_same_gradients(runs, name):
    """To 1e-5 of the leaf's largest value, or 1e-6 of the largest of all: a bias of keys has a gradient of rounding
    alone."""
    expected = runs["one device"]["grads"]
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        allowed = max(1e-5 * np.abs(leaf).max(), 1e-6 * largest)
        assert np.abs(runs[name]["grads"][path] - leaf).max() <= allowed, path


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_every_mesh_ends_with_the_same_parameters(runs, name):
    """After five steps of SGD, to the 1e-5 to which the gradients agree."""
    for path, leaf in runs["one device"]["state"].trained.items():
        ours = np.asarray(runs[name]["state"].trained[path])
        np.testing.assert_allclose(ours, leaf, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_all_devices_hold_their_part(runs, name):
    """Of the batch, its share over `data` and `fsdp`; of large leaves and their optimizer slots, their share of
    `fsdp` and `tensor`."""
    mesh, run = MESHES[name], runs[name]
    shards = run["first"]["input_ids"].addressable_shards
    assert len({shard.device for shard in shards}) == 8
    assert {shard.data.shape[0] for shard in shards} == {8 // (mesh.data * mesh.fsdp)}
    for leaves in (run["state"].trained, slots(run["state"].opt_state)):
        embedding, kernel = leaves["stem/word/embedding"], leaves["blocks/0/mlp/up/kernel"]
        assert embedding.addressable_shards[0].data.size * mesh.fsdp * mesh.tensor == embedding.size
        assert kernel.addressable_shards[0].data.size * mesh.fsdp * mesh.tensor == kernel.size


@pytest.mark.parametrize("name", list(MESHES))
def test_the_second_step_does_not_compile_again(runs, name):
    """One program for all five steps."""
    assert runs[name]["programs"] == 1


def test_two_processes_see_the_same_batches_and_losses(runs, pair):
    """In both processes, to the same tolerance; each holds half of what is sharded."""
    for said in pair:
        assert said["ids"] == runs["one device"]["ids"]
        np.testing.assert_allclose(said["losses"], runs["one device"]["losses"], rtol=1e-5)
        assert said["held"]["stem/word/embedding"] == said["held"]["blocks/0/mlp/up/kernel"] == 0.5


def test_a_probe_gathers_what_it_reads_once_and_no_more(home):
    """A head-only step over `fsdp` gathers the sharded leaves that its forward pass reads, each once, and nothing
    else. At a batch large enough for that to be the cheaper way; below, the compiler moves activations instead."""
    exp = makers.changed(wide(home), plan__preset=None, plan__train=("head/.*",))
    engine = build(exp, mesh=meshes.build(MESHES["fsdp=8"]))
    frozen = engine.init().frozen
    sharded = {path: leaf.nbytes for path, leaf in frozen.items() if not leaf.sharding.is_fully_replicated}
    assert set(sharded) == {"stem/word/embedding", "blocks/0/mlp/up/kernel", "blocks/0/mlp/down/kernel"}
    gathered = gathered_bytes(costs.compile_step(engine, 512).as_text())
    assert 0 < gathered <= sum(sharded.values())


def slots(opt_state) -> dict[str, jax.Array]:
    """The momenta by path."""
    by_path = {}
    for path, leaf in jax.tree.leaves_with_path(opt_state):
        name = str(path[-1].key) if isinstance(path[-1], jax.tree_util.DictKey) else ""
        by_path.setdefault(name, leaf)
    return by_path


def gathered_bytes(text: str) -> int:
    """What the all-gathers of a compiled program give each device, in bytes."""
    sizes = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "u8": 1, "pred": 1}
    total = 0
    for shapes, start in re.findall(r"= (.*?) all-gather(-start)?\(", text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        # The asynchronous form names what goes in before what comes out.
        for kind, dims in arrays[len(arrays) // 2 :] if start else arrays:
            total += sizes[kind] * int(np.prod([int(dim) for dim in dims.split(",") if dim] or [1]))
    return total


def test_changes_of_images_are_the_same_on_every_device(tmp_path):
    """Mirrored, shifted and mixed within a program over eight devices: each picks its rows of a set that all hold, and
    the losses are those of single steps, to the 1e-5 of sums in another order."""
    exp = makers.changed(makers.image_run(tmp_path), mesh__data=8, train__accumulate=1, train__log_every=4)
    engine = build(makers.changed(exp, train__mixup=0.8, train__resident="on"))
    resident = Resident(engine)
    assert resident.why_not() is None and "flip" in engine.exp.data.augment
    resident.load()
    ((_, updates),) = resident.updates(0, 4, lambda done: 4)
    _, found = resident.step(engine.init(), updates)
    state = engine.init()
    for number, batch in enumerate(engine.train_batches(0, 4)):
        state, metrics = engine.train_step(state, batch)
        np.testing.assert_allclose(found["loss"][number], metrics["loss"], rtol=1e-5)
    rows = jax.jit(lambda data, *told: engine.step.spread(data.batch(*told)))
    program = rows.lower(resident.data, *(told[0] for told in updates[:3])).compile().as_text()
    assert "f32[2,8,8,3]" in program and "[16,8,8,3]" not in program
