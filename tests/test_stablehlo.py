# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run exported as a StableHLO program gives its own answers in a process that knows nothing of tl_jax."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import makers
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file

from tl_jax import apply, loading, runs, stablehlo
from tl_jax.core import chain
from tl_jax.core.chain import EVAL
from tl_jax.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")

# Runs the lines that `model.json` gives, over the batches of batches.npz, where neither package can be imported.
_STRANGER = """
import json, sys
sys.modules["tl_jax"] = sys.modules["flax"] = None
import numpy as np
about = json.load(open("model.json"))
arrays = np.load("batches.npz")
found = {}
for number in sorted({name.split(" ")[0] for name in arrays}):
    inputs = {name: arrays[f"{number} {name}"] for name in about["inputs"]}
    exec("\\n".join(about["call"]))
    found |= {f"{number} {name}": np.asarray(value) for name, value in outputs.items()}
np.savez("outputs.npz", **found)
"""


def by_a_stranger(folder, batches) -> list[dict[str, np.ndarray]]:
    """What the exported folder makes of batches."""
    np.savez(
        folder / "batches.npz", **{f"{i} {name}": x for i, batch in enumerate(batches) for name, x in batch.items()}
    )
    command = [sys.executable, "-I", "-c", _STRANGER]
    done = subprocess.run(command, cwd=folder, env=makers.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "outputs.npz")
    names = json.loads((folder / "model.json").read_text())["outputs"]
    return [{name: found[f"{i} {name}"] for name in names} for i in range(len(batches))]


def texts(rows: int, length: int, seed: int) -> dict[str, np.ndarray]:
    """A padded batch for the BERT of `makers`."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(length) < rng.integers(2, length + 1, rows)[:, None]).astype(np.int32)
    ids = rng.integers(4, 30, (rows, length)).astype(np.int32) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """The workdir of a run with adapters, and the folder that the command line exported it to."""
    home = tmp_path_factory.mktemp("lora")
    plan = {"plan__preset": "lora", "plan__rank": 2, "plan__lr": ()}
    runs.run(makers.changed(makers.text_run(home, epochs=1), **plan), home / "run", quiet=True)
    code, out, err = makers.cli_run("export", f"--workdir={home / 'run'}", f"--to={home / 'out'}", "--format=stablehlo")
    assert code == 0 and "cpu, cuda, tpu" in out, err
    return home / "run", home / "out"


def test_another_process_gives_the_runs_logits(lora):
    """For batches of other sizes and lengths than the run saw, adapters folded into their kernels. To 1e-5, as W x +
    B A x and (W + B A) x round differently."""
    workdir, folder = lora
    engine, state = runs.open_run(workdir)
    batches = [texts(5, 11, seed=0), texts(1, 16, seed=1)]
    assert not [path for path in load_file(folder / "model.safetensors") if "lora" in path]
    found = by_a_stranger(folder, batches)
    assert max(np.abs(np.asarray(state.trained[path])).max() for path in state.trained if "/lora/b/" in path) > 1e-3
    for ours, batch in zip(found, batches):
        np.testing.assert_allclose(ours["logits"], engine.eval_step(state, batch)["logits"], atol=1e-5)


def test_the_json_says_what_goes_in_and_comes_out(lora):
    """Shapes by symbols, dtypes, the limit of lengths, classes in the order of the logits."""
    workdir, folder = lora
    about = json.loads((folder / "model.json").read_text())
    assert set(about["inputs"]) == {"input_ids", "attention_mask", "token_type_ids"}
    assert about["inputs"]["input_ids"] == {"shape": ["b", "t"], "dtype": "int32"}
    assert about["outputs"] == {"logits": {"shape": ["b", 3], "dtype": "float32"}}
    assert about["sizes"]["t"] == "1 to 16 positions" and about["platforms"] == ["cpu", "cuda", "tpu"]
    assert tuple(about["classes"]) == runs.open_run(workdir)[0].task.classes
    assert about["temperature"] is None


def test_images_need_no_length(tmp_path):
    """A ResNet with running statistics: only the batch is open."""
    runs.run(makers.image_run(tmp_path, epochs=None, steps=2), tmp_path / "run", quiet=True)
    apply.export(str(tmp_path / "run"), str(tmp_path / "out"), "stablehlo")
    engine, state = runs.open_run(tmp_path / "run")
    batch = {"pixel_values": np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)}
    program = export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
    found = program.call(load_file(tmp_path / "out" / "model.safetensors"), batch)
    # The same sums of float32, which another program may take in another order.
    np.testing.assert_allclose(found["logits"], engine.eval_step(state, batch)["logits"], atol=1e-5)
    assert json.loads((tmp_path / "out" / "model.json").read_text())["sizes"] == {"b": "any number of examples"}


_BLOCKS = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
_SMALL = {
    "vit": {**_BLOCKS, "image_size": 16, "patch_size": 8},
    "dinov2": {**_BLOCKS, "image_size": 16, "patch_size": 8},
    "swin": {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4},
}


@pytest.mark.parametrize("family", _SMALL)
def test_families_of_images_take_any_number_of_them(family):
    """Also those that put a token before the patches, or lay windows."""
    checkpoint = loading.from_config({"model_type": family, **_SMALL[family]})
    model = loading.abstract(checkpoint)
    chains, params = chain.split(model)

    def forward(params, batch):
        return chain.run_chains(model, chains, params, batch, lambda _: EVAL)[0]

    program = stablehlo.lowered(forward, params, {"pixel_values": np.zeros((1, 16, 16, 3), np.float32)}, 1)
    assert stablehlo.described(program, 1)["inputs"]["pixel_values"]["shape"] == ["b", 16, 16, 3]


def test_a_network_that_must_know_its_length_gets_the_longest():
    """It is said, and batches stay open."""

    def counts(params, batch):
        return {"y": batch["x"] * jnp.asarray(np.arange(int(batch["x"].shape[1])), jnp.float32)}

    program = stablehlo.lowered(counts, {}, {"x": np.zeros((1, 6), np.float32)}, 6)
    assert program.platforms == stablehlo.PLATFORMS
    about = stablehlo.described(program, 6)
    assert about["inputs"]["x"]["shape"] == ["b", 6] and "always 6" in about["sizes"]["length"]


def test_a_platform_that_lacks_an_operation_is_left_out():
    """A Schur decomposition is built for CPUs alone; the program is made for these and says so."""

    def decomposed(params, batch):
        return {"y": jax.vmap(lambda x: jax.scipy.linalg.schur(params["w"] + x)[0])(batch["x"][:, 0])}

    program = stablehlo.lowered(decomposed, {"w": np.eye(2, dtype=np.float32)}, {"x": np.zeros((1, 1, 2, 2), "f")}, 6)
    assert stablehlo.described(program, 6)["platforms"] == ["cpu"]


def test_a_network_that_no_platform_takes_is_no_program():
    """The last error is told; nothing is made of it."""

    def wrong(params, batch):
        raise TypeError("no such network")

    with pytest.raises(TypeError, match="no such network"):
        stablehlo.lowered(wrong, {}, {"x": np.zeros((1, 6), np.float32)}, 6)


def test_what_stands_in_the_folder_stays(lora, tmp_path):
    """A folder with a file in it is refused before anything is read."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not a new or empty folder"):
        apply.export(str(lora[0]), str(tmp_path), "stablehlo")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_package_is_named(lora, tmp_path, monkeypatch):
    """One line with the command that installs it, and nothing is written."""
    monkeypatch.setattr(stablehlo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="flatbuffers.*pip install"):
        apply.export(str(lora[0]), str(tmp_path / "out"), "stablehlo")
    assert not (tmp_path / "out").exists()
