# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters, or the prompt, of a network in the files of PEFT.

tl_jax.save_adapter(tl_jax.load_run("runs/x"), "out/adapter")      # PeftModel.from_pretrained(base, "out/adapter")
adapted = tl_jax.load_adapter(tl_jax.load_pretrained("path/to/base"), "path/to/adapter")
adapted.merge().save("out/whole")                                  # the published layout again
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.errors import UserError, shorten
from tl_jax.nn import prompt
from tl_jax.nn.adapters import kernel_of
from tl_jax.parallel import sharding
from tl_jax.plan import adapters
from tl_jax.pretrained import Pretrained
from tl_jax.weights import peft

# What PEFT calls the kind of network, by its last stage.
_TASK_TYPES = {"head": "SEQ_CLS", "lm_head": "CAUSAL_LM", "qa_outputs": "QUESTION_ANS"}
_NUM_HEADS = ("num_attention_heads", "n_head", "n_heads")


def save_adapter(pretrained: Pretrained, folder: str | pathlib.Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`: the adapters or the prompt, and whole every other
    module that is not as the base's files have it, such as a new head. With several processes all call it, and process
    0 writes.

    Raises:
      UserError: no adapters, or such as PEFT's files have no place for; a folder that is not empty.
    """
    parts = {}
    front = prompt.of(pretrained.model)
    for path, layer in {} if front else adapters.installed(pretrained.model).items():
        arrays = {name: np.asarray(sharding.gathered(leaf[...])) for name, leaf in _leaves(layer).items()}
        parts[path] = peft.Part(adapters.adapter_of(layer).spec, arrays)
    rest = {path: leaf for path, leaf in pretrained.params.items() if not adapters.is_adapter(path)}
    params = {path: np.asarray(sharding.gathered(leaf)) for path, leaf in rest.items()}
    changed = {path for path in pretrained.changed() if path in params}
    if front is not None:
        front = _described(pretrained, np.asarray(sharding.gathered(front.rows[...])))
    receipt = pretrained.receipt
    if jax.process_index() == 0:
        names = _names(pretrained, headed=bool(changed))
        peft.write(pathlib.Path(folder), parts, params, changed, names, receipt.source, receipt.digest, front)


def load_adapter(pretrained: Pretrained, folder: str | pathlib.Path) -> Pretrained:
    """The network with the adapters or the prompt, and the head, of a folder that PEFT or `save_adapter` wrote.

    Args:
      pretrained: the base, as it was when the adapter was made; it is left as it is.

    Raises:
      UserError: another base, adapters it has already, tensors without a place, kinds that are not built.
    """
    if adapters.installed(pretrained.model):
        raise UserError(str(folder), "the network has adapters already", "merge() them, or load the base anew")
    names = _names(pretrained, headed=True)
    parts, rows, rest = peft.read(pathlib.Path(folder), names, pretrained.receipt.digest)
    model = nnx.clone(pretrained.model)
    params = chain.split(model)[1]
    mistakes = [f"{path} is not in this network" for path in (*parts, *rest) if path not in params]
    mistakes += [
        f"{path} is {list(params[path].shape)}, the file has {list(array.shape)}"
        for path, array in rest.items()
        if path in params and params[path].shape != array.shape
    ]
    if mistakes:
        raise UserError(str(folder), shorten(mistakes), "load the base, with its head, that the adapter was made for")
    arrays = {path: part.arrays for path, part in parts.items()}
    if rows is not None:
        prompt.install(model, len(rows), nnx.Rngs(0), str(folder))
        arrays = {path: {"rows": rows} for path in adapters.installed(model)}
    fused = [rule.params for rule in names.rules if len(rule.params) > 1]
    adapters.install(model, {path: part.spec for path, part in parts.items()}, fused, nnx.Rngs(0))
    for path, layer in adapters.installed(model).items():
        for name, leaf in _leaves(layer).items():
            array = arrays[path][name]
            if leaf.shape != array.shape:
                mistakes.append(f"{name} of {path} is {list(array.shape)}, {list(leaf.shape)} is needed")
            leaf.set_value(jnp.asarray(array))
    if mistakes:
        raise UserError(str(folder), shorten(mistakes), "load the base that the adapter was made for")
    chain.merge_into(model, {**chain.split(model)[1], **{path: jnp.asarray(array) for path, array in rest.items()}})
    return pretrained.around(model)


def _described(pretrained: Pretrained, rows: np.ndarray) -> peft.Prompt:
    """The prompt with what PEFT wants to know of the network."""
    config, (*_, last) = pretrained.model.config, pretrained.model.chains[""]
    heads = next(getattr(config, name) for name in _NUM_HEADS if hasattr(config, name))
    layers = sum(name.startswith("blocks/") for name in pretrained.model.chains[""])
    return peft.Prompt(rows, _TASK_TYPES.get(last, "FEATURE_EXTRACTION"), layers, heads)


def _leaves(layer: nnx.Module) -> dict[str, nnx.Param]:
    """An adapter's parameters under short names; those of a bottleneck have none in PEFT."""
    adapter = adapters.adapter_of(layer)
    if adapter.name == "prompt":
        return {"rows": adapter.rows}
    if adapter.name == "ia3":
        return {"scale": adapter.scale}
    if adapter.name == "bottleneck":
        return {}
    more = {"magnitude": adapter.magnitude} if adapter.spec.kind == "dora" else {}
    return {"a": kernel_of(adapter.a), "b": adapter.b.kernel, **more}


def _names(pretrained: Pretrained, headed: bool) -> peft.Names:
    """Names of a network without a head lack the prefix only where its file's do and no head was put on it."""
    source, indices = pretrained.layout()
    known = [name for entry in pretrained.receipt.loaded for name in entry.tensors]
    bare = not headed and bool(known) and not any(name.startswith(source.prefix) for name in known)
    return peft.Names(source, indices, bare)
