# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run's network as a StableHLO program, which JAX runs by itself: without tl_jax, without Flax, for any batch size.

    write("runs/x", "out/x")

    from jax import export                                    # where it is used
    from safetensors.numpy import load_file
    program = export.deserialize(bytearray(open("out/x/model.stablehlo", "rb").read()))
    logits = jax.jit(program.call)(load_file("out/x/model.safetensors"), {"input_ids": ids, …})["logits"]

Weights are arguments, in a file of their own: as constants of the program they make it slow to compile, anew for every
shape. `model.json` says what goes in and what comes out.
"""

import importlib.util
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import export
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tl_jax import calibration, inputs
from tl_jax.core import chain
from tl_jax.core import folder as folders
from tl_jax.core.chain import EVAL
from tl_jax.core.errors import UserError
from tl_jax.engine import Engine
from tl_jax.parallel import sharding
from tl_jax.runs import open_run

# By which of them a network says that it must know a size, or that a platform lacks an operation, depends on its code.
_UNKNOWN_SIZE = (jax.errors.InconclusiveDimensionOperation, TypeError, NotImplementedError)
PROGRAM, WEIGHTS, ABOUT = "model.stablehlo", "model.safetensors", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")
_CALL = (
    "import jax",
    "from jax import export",
    "from safetensors.numpy import load_file",
    f'program = export.deserialize(bytearray(open("{PROGRAM}", "rb").read()))',
    f'outputs = jax.jit(program.call)(load_file("{WEIGHTS}"), inputs)',
)


def write(workdir: str, target: str) -> str:
    """Write a run's adapted network: the program, its weights in float32, and `model.json` about both. Adapters are
    folded into their kernels, and what a run had quantised is as the file has it. With several processes all call it,
    and process 0 writes.

    Args:
      target: a new or empty folder.

    Returns:
      What was written, for a person.

    Raises:
      UserError: no run there, a folder that is not empty, adapters that no kernel can take in, no flatbuffers.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("--format", "stablehlo needs the package flatbuffers", "run: pip install 'tl_jax[stablehlo]'")
    folder = pathlib.Path(target)
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise UserError(target, "is not a new or empty folder", "give another")
    engine, state = open_run(workdir)
    pretrained = engine.to_pretrained(state).merge()
    weights = {path: np.asarray(sharding.gathered(leaf)) for path, leaf in pretrained.params.items()}
    program = lowered(_forward(engine, pretrained.model), weights, _example(engine), engine.exp.data.max_length)
    about = {
        **described(program, engine.exp.data.max_length),
        "classes": list(pretrained.classes),
        # Predictions of the run divide their logits by it before the softmax.
        "temperature": calibration.saved_temperature(workdir),
        "base": pretrained.receipt.source,
        "base_digest": pretrained.receipt.digest,
        "jax": jax.__version__,
    }
    if jax.process_index() == 0:
        _save(folder, program.serialize(), weights, about)
    sizes = "; ".join(f"{name} is {text}" for name, text in about["sizes"].items())
    return f"jax.export as {folder / ABOUT} says; for {', '.join(program.platforms)}; {sizes}"


def lowered(
    function: Callable[..., Any],
    params: Mapping[str, Any],
    example: Mapping[str, np.ndarray],
    longest: int,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """`function(params, batch)` for batches of every size and sequences of up to `longest`, for as many of the
    platforms as it can be lowered for; sequences are always of that length where none can be lowered otherwise.

    Args:
      params, example: arrays, or their shapes; the first axis of the example's is that of the batch. Of inputs only
        sequences have two axes.
    """
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in params.items()}
    function, failures = jax.jit(function), []

    def attempt(batch, names):
        try:
            return export.export(function, platforms=names)(shapes, batch)
        except _UNKNOWN_SIZE as error:
            failures.append(error)

    for batch in _batches(example, longest):
        found = attempt(batch, tuple(platforms))
        if found is None:
            working = tuple(name for name in platforms if attempt(batch, (name,)) is not None)
            found = attempt(batch, working) if working else None
        if found is not None:
            return found
    raise failures[-1]


def _batches(example: Mapping[str, np.ndarray], longest: int) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of any number of examples: of sequences of any length where there are sequences, and of the longest."""
    sequences = {name for name, array in example.items() if array.ndim == 2}
    # A network compares the length with its limit, so the symbol needs one too.
    open_rows, length = export.symbolic_shape("b, t", constraints=(f"t <= {longest}",))
    (rows,) = export.symbolic_shape("b")

    def shapes(rows, length):
        return {
            name: jax.ShapeDtypeStruct((rows, *((length,) if name in sequences else array.shape[1:])), array.dtype)
            for name, array in example.items()
        }

    return [*([shapes(open_rows, length)] if sequences else []), shapes(rows, longest)]


def described(program: export.Exported, longest: int) -> dict[str, Any]:
    """What `model.json` says of a program: how to call it, inputs and outputs by name with shape and dtype, sizes."""
    (_, batch), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    lengths = {str(array.shape[1]) for array in batch.values() if len(array.shape) == 2}
    sizes = {"b": "any number of examples"}
    if "t" in lengths:
        sizes["t"] = f"1 to {longest} positions"
    elif lengths:
        sizes["length"] = f"always {longest} positions, which this network must know"
    return {
        "call": list(_CALL),
        "inputs": {name: _named(array) for name, array in batch.items()},
        "outputs": {
            name: _named(array) for name, array in jax.tree.unflatten(program.out_tree, program.out_avals).items()
        },
        "sizes": sizes,
        "platforms": list(program.platforms),
    }


def _named(array) -> dict[str, Any]:
    return {"shape": [size if isinstance(size, int) else str(size) for size in array.shape], "dtype": str(array.dtype)}


def _forward(engine: Engine, model: chain.Backbone) -> Callable[..., dict[str, jax.Array]]:
    """(params, batch) -> what `Engine.eval_step` returns of the network's outputs."""
    chains, _ = chain.split(model)
    dtype = jnp.bfloat16 if engine.exp.model.dtype == "bfloat16" else None

    def forward(params, batch):
        outputs, _ = chain.run_chains(model, chains, params, batch, lambda _: EVAL, dtype=dtype)
        # A task that collects numbers of its loss alone still has scores.
        names = [name for name in engine.task.outputs if name in outputs] or ["logits"]
        return {name: outputs[name] for name in names}

    return forward


def _example(engine: Engine) -> dict[str, np.ndarray]:
    """Inputs of one example, as the run reads them."""
    kind, longest = inputs.kind_of(engine.checkpoint), engine.exp.data.max_length
    if kind == "text":
        record = {"input_ids": np.zeros(1, np.int32), "token_type_ids": np.zeros(1, np.int32)}
    elif kind == "image":
        record = {"image": np.zeros((64, 64, 3), np.uint8)}
    else:
        rate = inputs.reading(engine.exp, engine.checkpoint).rate
        record = {"sound": np.zeros(longest, np.float32), "rate": rate}
    return engine.transform.collate([engine.transform(record, None)], longest)


def _save(folder: pathlib.Path, program: bytes, weights: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRAM).write_bytes(program)
        save_file(dict(weights), folder / WEIGHTS)
        folders.write_json(epath.Path(folder) / ABOUT, about)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise UserError(str(folder), f"could not be written ({error})", "see that there is room") from error
        raise
