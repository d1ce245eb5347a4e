# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a file fill which parameters: decided from names and shapes alone, before any tensor is read.

    match = match_tensors(source, config.indices(), files.tensors, abstract_params, fresh=("head/.*",), where="bert/")

Every tensor and every parameter ends up in the match, or in the one error that names all that do not fit.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tl_jax.core import paths
from tl_jax.core.errors import UserError, shorten
from tl_jax.core.task import HEADS
from tl_jax.weights import surgery
from tl_jax.weights.files import TensorInfo
from tl_jax.weights.rules import Layout, Source


@dataclasses.dataclass(frozen=True)
class Match:
    """What loading will do.

    Attributes:
      filled: (tensor names as in the file, parameter paths, layout), in the order to read them.
      fresh: parameters to initialise.
      dropped: tensors whose parameters are initialised instead.
      ignored: tensors without a place here.
      resized: (parameter path, its shape in the file, its new shape, kinds of `surgery`) of those to resize.
    """

    filled: tuple[tuple[tuple[str, ...], tuple[str, ...], Layout], ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    ignored: tuple[str, ...]
    resized: tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[str, ...]], ...] = ()


def match_tensors(
    source: Source,
    indices: Sequence[Mapping[str, int]],
    tensors: Mapping[str, TensorInfo],
    params: Mapping[str, object],
    fresh: Sequence[str],
    where: str,
    resize: Sequence[surgery.Row] = (),
) -> Match:
    """Pair the file's tensors with the model's parameters.

    Args:
      params: every parameter with its `.shape` and `.dtype`; abstract will do.
      fresh: patterns of parameters to leave to initialisation, whether the file has them or not.
      resize: what another shape is no mistake for; see `surgery.asked`.

    Raises:
      UserError: parameters without a tensor, tensors without a place, shapes that differ: all of them at once.
    """
    rules = [rule for row in source.rules for rule in row.expand(indices)]
    known = {name for rule in rules for name in rule.tensors}
    renew = paths.matches(fresh, params, "model.fresh")

    filled, dropped, taken, mistakes, resized = [], [], set(), [], []
    by_name: dict[str, str] = {}
    for name in tensors:
        canonical = source.canonical(name, known)
        if canonical in by_name:
            mistakes.append(f"{by_name[canonical]} and {name} are two names of one tensor")
        by_name[canonical] = name
    for rule in rules:
        here = [path for path in rule.params if path in params]
        names = tuple(by_name[name] for name in rule.tensors if name in by_name)
        if not here or len(names) < len(rule.tensors):
            continue
        if renew.issuperset(here):
            dropped.extend(names)
            continue
        taken.update(names)
        shapes = [array.shape for array in rule.layout.load(tuple(_dummy(tensors[name].shape) for name in names))]
        for path, shape in zip(rule.params, shapes):
            if path not in params or shape == params[path].shape:
                continue
            if kinds := surgery.steps(resize, path, shape, params[path].shape):
                resized.append((path, shape, tuple(params[path].shape), kinds))
            else:
                found = ", ".join(f"{name} {list(tensors[name].shape)}" for name in names)
                mistakes.append(f"{path} is {list(params[path].shape)}, the file has {found}")
        filled.append((names, rule.params, rule.layout))

    filled_params = {path for _, params_, _ in filled for path in params_}
    missing = [path for path in params if path not in filled_params and path not in renew]
    unused, ignored = [], []
    for canonical, name in by_name.items():
        if name in taken or name in dropped:
            continue
        optional = canonical in known and _fits(canonical, source.optional)
        nowhere = _fits(name, source.ignored) or _fits(source.prefix + name, source.ignored)
        (ignored if optional or nowhere else unused).append(name)
    mistakes += _report(missing, unused, params, tensors)
    if mistakes:
        wrong = [text.split(" is ")[0] for text in mistakes if ", the file has " in text] + missing
        raise UserError(where, "; ".join(mistakes), _advice(wrong))
    return Match(tuple(filled), tuple(sorted(renew)), tuple(dropped), tuple(ignored), tuple(resized))


def source_that_fits(
    sources: Mapping[str, Source], indices: Sequence[Mapping[str, int]], tensors: Mapping[str, TensorInfo]
) -> str:
    """The name of the layout that knows most of the file's tensors."""

    def hits(name: str) -> int:
        known = {tensor for row in sources[name].rules for rule in row.expand(indices) for tensor in rule.tensors}
        return sum(sources[name].canonical(tensor, known) in known for tensor in tensors)

    return max(sources, key=hits)


def _report(missing: list[str], unused: list[str], params, tensors) -> list[str]:
    mistakes = []
    if missing:
        named = [f"{path} {np.dtype(params[path].dtype).name}{list(params[path].shape)}" for path in missing]
        text = f"{len(missing)} of {len(params)} parameters found no tensor: {shorten(named)}"
        near = difflib.get_close_matches(missing[0].replace("/", "."), unused, n=1, cutoff=0.3)
        if near:
            text += f" (nearest unused tensor: {near[0]!r} {list(tensors[near[0]].shape)})"
        mistakes.append(text)
    if unused:
        named = [f"{name} {list(tensors[name].shape)}" for name in unused]
        mistakes.append(f"{len(unused)} of {len(tensors)} tensors found no parameter: {shorten(named)}")
    return mistakes


def _advice(wrong: list[str]) -> str:
    stages = tuple(dict.fromkeys(path.partition("/")[0] for path in wrong))
    if stages and set(stages) <= set(HEADS):
        return f"to start a new head, say model.fresh={tuple(f'{stage}/.*' for stage in stages)}"
    if wrong:
        return "check that config.json belongs to these weights, or name what to start from scratch in model.fresh"
    return "check that config.json belongs to these weights"


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _dummy(shape: tuple[int, ...]) -> np.ndarray:
    """An array of that shape which takes no memory, to run a layout on."""
    return np.broadcast_to(np.float32(0), shape)
