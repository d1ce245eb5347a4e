# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which kernels get an adapter, and how a network comes by its adapters and is rid of them again.

    chosen = choose(Plan(adapters=((r".*/attn/(query|value)/kernel", Adapter("lora", rank=8)),)), model, fused=())
    install(model, chosen, fused=(), rngs=rngs)       # blocks/0/attn/query/lora/a/kernel, …/lora/b/kernel
    merge(model)                                      # folded into the kernels, and gone

A layer keeps its paths: the adapter is one more child of it, and its class becomes one that goes through that child. A
prompt (`nn.prompt`) is an adapter of the table of words. Knows paths and layers, no families.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.config import Adapter, Plan
from tl_jax.core import chain, paths
from tl_jax.core.errors import UserError, shorten
from tl_jax.core.quantized import Quantized, whole
from tl_jax.nn.adapters import KINDS, LAYERS, Bottleneck, adapted, norms
from tl_jax.nn.prompt import Prompt

_NAMES = sorted({Prompt.name, *(kind.name for kind in KINDS.values())})
_OURS = re.compile(rf".*/({'|'.join(_NAMES)})/.*")
_ATTENTION = re.compile(r"(.*/)?blocks/\d+/(.*/)?(query|value)/kernel")
Fused = Sequence[tuple[str, ...]]


def is_adapter(path: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return _OURS.fullmatch(path) is not None


def names_adapters(pattern: str) -> bool:
    """Whether a pattern of a plan speaks of adapters' parameters; else it speaks of the network's."""
    return not set(_NAMES).isdisjoint(re.split(r"\W+", pattern))


def asked(plan: Plan) -> bool:
    """Whether a plan names adapters or a prompt."""
    return bool(plan.adapters or plan.prompt) or plan.preset == "lora"


def choose(plan: Plan, model: chain.Backbone, fused: Fused) -> dict[str, Adapter]:
    """The adapter of each kernel that gets one, by the kernel's path.

    Args:
      model: may be abstract.
      fused: paths of kernels that are one tensor in the published file, as GPT-2's queries, keys and values. The preset
        takes such a tensor as a whole, as PEFT cannot do otherwise.

    Raises:
      UserError: a pattern that matches no kernel.
    """
    kernels = [path for path in chain.split(model)[1] if path.endswith(("/kernel", "/embedding"))]
    rules = list(plan.adapters)
    if plan.preset == "lora":
        wanted = {path for path in kernels if _ATTENTION.fullmatch(path)}
        if not wanted:
            raise UserError("plan.preset", "lora finds no queries and values here", "name kernels in plan.adapters")
        wanted.update(path for group in fused if wanted.intersection(group) for path in group)
        spec = Adapter("lora", rank=8 if plan.rank is None else plan.rank)
        rules.append(("|".join(map(re.escape, sorted(wanted))), spec))
    return paths.first_match(rules, kernels, "plan.adapters")


def install(model: chain.Backbone, chosen: Mapping[str, Adapter], fused: Fused, rngs: nnx.Rngs) -> None:
    """Give each kernel its adapter, in place. Kernels that are one tensor in the file share their first LoRA layer.

    Raises:
      UserError: kernels of layers that take no adapter, or none of this kind.
    """
    refused = [text for path, spec in chosen.items() if (text := _refusal(path, _layer(model, path), spec))]
    if refused:
        raise UserError("plan.adapters", shorten(refused), "leave them out of the patterns")
    shared: dict[tuple, nnx.Module] = {}
    for path, spec in chosen.items():
        layer, kind = _layer(model, path), KINDS[spec.kind]
        group = next((group for group in fused if path in group), None)
        extra = {"shared": shared[group, spec]} if (group, spec) in shared else {}
        adapter = kind(layer, spec, rngs=rngs, **extra)
        if group is not None and kind.name == "lora":
            shared[group, spec] = adapter.a
        setattr(layer, kind.name, adapter)
        layer.__class__ = adapted(type(layer), kind.name)


def installed(model: chain.Backbone) -> dict[str, nnx.Module]:
    """The layers that have an adapter, by their kernel's path; the adapter is `adapter_of` such a layer."""
    found = {}
    for path, module in nnx.iter_modules(model):
        if getattr(module, "adapter", None) in _NAMES:
            leaf = "embedding" if isinstance(module, nnx.Embed) else "kernel"
            found["/".join((*map(str, path), leaf))] = module
    return found


def adapter_of(layer: nnx.Module) -> nnx.Module:
    """The adapter of an adapted layer."""
    return getattr(layer, layer.adapter)


def merge(model: chain.Backbone) -> None:
    """Fold every adapter into its kernel, float32, and leave plain layers, in place.

    Raises:
      UserError: a prompt, an adapter that is no change of a kernel, or a kernel that another stage shares.
    """
    layers = installed(model)
    shared = {owner for stages in chain.split(model)[0].values() for stage in stages for _, owner in stage.tied}
    if Prompt.name in {found.adapter for found in layers.values()}:
        raise UserError("merge", "no kernel can take in a prompt", "write it as PEFT does, with export --format=peft")
    refused = [f"{path} ({found.adapter})" for path, found in layers.items() if found.adapter == Bottleneck.name]
    refused += [f"{path} (another layer uses it without the adapter)" for path in layers if path in shared]
    if refused:
        raise UserError("merge", f"cannot be folded into their kernels: {shorten(refused)}", "keep them as they are")
    for layer in layers.values():
        for name, value in adapter_of(layer).merged(layer).items():
            getattr(layer, name).set_value(value)
        name, layer.__class__ = layer.adapter, layer.base
        delattr(layer, name)


def settled(
    params: Mapping[str, jax.Array], shardings: Mapping[str, jax.sharding.Sharding] | None = None
) -> dict[str, jax.Array]:
    """The magnitudes with which DoRA begins, which are lengths in kernels that were loaded just now."""
    found = {}
    for path in params:
        layer, name, leaf = path.rpartition("/lora/")
        if name and leaf == "magnitude":
            out = None if shardings is None else shardings[path]
            found[path] = jax.jit(_lengths, out_shardings=out)(params[f"{layer}/kernel"])
    return found


def _lengths(kernel: jax.Array | Quantized) -> jax.Array:
    return norms(whole(kernel) if isinstance(kernel, Quantized) else kernel)


def largest_difference(ours: Mapping[str, jax.Array], theirs: Mapping[str, jax.Array]) -> float:
    """Over all named outputs, which both have."""
    return max(float(jnp.max(jnp.abs(ours[name] - theirs[name]))) for name in ours)


def _layer(model: chain.Backbone, path: str) -> nnx.Module:
    return model.stage(path.rpartition("/")[0])


def _refusal(path: str, layer: nnx.Module, spec: Adapter) -> str | None:
    if type(layer) not in LAYERS:
        return f"{path} belongs to a {type(layer).__name__}, which takes no adapter"
    if isinstance(layer, nnx.Embed) and spec.kind in ("dora", "ia3"):
        return f"{path} is a table, which takes no {spec.kind}"
    if isinstance(layer, nnx.Embed) and spec.dropout:
        return f"{path} is a table, which takes no dropout"
    if isinstance(layer, nnx.Conv) and layer.feature_group_count > 1 and spec.kind != "bottleneck":
        return f"{path} is a convolution in groups, which takes no {spec.kind}"
    return None
