# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Key maps: which tensors of a published file are which parameters, as data that is read both ways.

    Rule("encoder.layer.{i}.output.dense.weight", "blocks/{i}/mlp/down/kernel", LINEAR)

A rule maps n tensors to m parameters by a layout that carries its own inverse, so that saving cannot drift from
loading. Placeholders take the values that the family's config lists.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tl_jax.core import typed
from tl_jax.core.errors import UserError

Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays in a file become parameters, and back.

    Attributes:
      name: as the receipt shows it.
      load: tensors -> parameters; views wherever NumPy can give one.
      save: parameters -> tensors, the exact inverse.
    """

    name: str
    load: Callable[[Arrays], Arrays]
    save: Callable[[Arrays], Arrays]


def _each(function) -> Callable[[Arrays], Arrays]:
    return lambda arrays: tuple(function(array) for array in arrays)


def split_rows(count: int) -> Layout:
    """One fused [count * out, in] tensor for `count` kernels [in, out]; as timm's qkv."""
    return Layout(
        f"{count} fused, transposed",
        lambda tensors: tuple(part.T for part in np.split(tensors[0], count)),
        lambda params: (np.concatenate([param.T for param in params]),),
    )


SAME = Layout("same", _each(lambda x: x), _each(lambda x: x))
LINEAR = Layout("transposed", _each(lambda x: x.T), _each(lambda x: x.T))  # [out, in] <-> [in, out]
CONV = Layout("OIHW to HWIO", _each(lambda x: x.transpose(2, 3, 1, 0)), _each(lambda x: x.transpose(3, 2, 0, 1)))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a key map: tensor names, parameter paths, and the layout between them."""

    tensors: str | tuple[str, ...]
    params: str | tuple[str, ...]
    layout: Layout

    def expand(self, indices: Sequence[Mapping[str, int]]) -> "list[Rule]":
        """The rule for every value of its placeholders, without repetition; itself where it has none."""
        tensors, params = (side if isinstance(side, tuple) else (side,) for side in (self.tensors, self.params))
        if not any("{" in text for text in (*tensors, *params)):
            return [Rule(tensors, params, self.layout)]
        rules = {}
        for values in indices:
            filled = tuple(t.format(**values) for t in tensors), tuple(p.format(**values) for p in params)
            rules[filled] = Rule(*filled, self.layout)
        return list(rules.values())


Names = Sequence[tuple[str, str]]


def dense(names: Names, layout: Layout = LINEAR) -> tuple[Rule, ...]:
    """Rows for `weight` and `bias` of every layer, given as (name in the file, path)."""
    return (
        *(Rule(f"{name}.weight", f"{path}/kernel", layout) for name, path in names),
        *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in names),
    )


def norms(names: Names) -> tuple[Rule, ...]:
    """Rows for `weight` and `bias` of every norm, given as (name in the file, path)."""
    return (
        *(Rule(f"{name}.weight", f"{path}/scale", SAME) for name, path in names),
        *(Rule(f"{name}.bias", f"{path}/bias", SAME) for name, path in names),
    )


TORCH = (".", ("weight", "bias", "running_mean", "running_var"))
KERAS = ("/", ("gamma", "beta", "moving_mean", "moving_variance"))


def batch_norms(names: Names, form: tuple[str, tuple[str, ...]] = TORCH) -> tuple[Rule, ...]:
    """Rows for scale, bias and running statistics of every BatchNorm, given as (name in the file, path)."""
    dot, leaves = form
    pairs = tuple(zip(leaves, ("scale", "bias", "mean", "var")))
    return tuple(Rule(f"{name}{dot}{theirs}", f"{path}/{ours}", SAME) for name, path in names for theirs, ours in pairs)


# Keras has [height, width, channels, 1] for a depthwise kernel.
DEPTHWISE = Layout(
    "HWC1 to HW1C",
    lambda tensors: tuple(tensor.transpose(0, 1, 3, 2) for tensor in tensors),
    lambda params: tuple(param.transpose(0, 1, 3, 2) for param in params),
)


def keras(names: Names, kernel: str = "kernel", layout: Layout = SAME) -> tuple[Rule, ...]:
    """Rows for kernel and bias of every layer of Keras, given as (name in the file, path)."""
    return (
        *(Rule(f"{name}/{kernel}", f"{path}/kernel", layout) for name, path in names),
        *(Rule(f"{name}/bias", f"{path}/bias", SAME) for name, path in names),
    )


# `transformers` 5 renamed the modules of its vision transformers and left the files as they were.
RENAMED = (
    (r"\.attention\.(attention|self)\.([qkv])(uery|ey|alue)\.", r".attention.\2_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


@dataclasses.dataclass(frozen=True)
class Source:
    """The key map of one published layout.

    Attributes:
      rules: the table.
      prefix: what names begin with in a file with a head, and lack in the file of the bare backbone.
      aliases: (pattern, replacement) for names of older files, tried on names that no rule knows.
      ignored: patterns of tensors that hold nothing this family uses.
      optional: patterns of tensors that belong to parts which a model may be built without.
      modules: (pattern, replacement) that make of a tensor's name the one it has within a module of `transformers`, in
        order; PEFT's files go by those.
    """

    rules: tuple[Rule, ...]
    prefix: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = ()

    def canonical(self, name: str, known: set[str]) -> str:
        """The name by which the rules know a tensor of the file; `name` itself where they do not."""
        for pattern, replacement in (("", ""), *self.aliases):
            changed = re.sub(pattern, replacement, name) if pattern else name
            for candidate in (changed, self.prefix + changed):
                if candidate in known:
                    return candidate
        return name


def published_fields(cls: type, data: Mapping[str, Any], required: Mapping[str, tuple] | None = None):
    """A family's Config from the fields it shares with a published `config.json`.

    Args:
      required: published fields that change the network in a way not built here, with the values that are.

    Raises:
      UserError: a field of the wrong type, or one of `required` with another value.
    """
    mistakes: list[str] = []
    for name, allowed in (required or {}).items():
        if data.get(name, allowed[0]) not in allowed:
            mistakes.append(f"{name} is {data[name]!r}, only {allowed[0]!r} is supported")
    names = {field.name for field in dataclasses.fields(cls)}
    config = typed.build(cls, {key: value for key, value in data.items() if key in names}, "", "", mistakes)
    if mistakes:
        raise UserError("config.json", "; ".join(mistakes))
    return config
