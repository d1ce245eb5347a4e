# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Data as frozen dataclasses: every value checked against its declared type, every unknown field named.

    mistakes = []
    value = build(Train, {"batch_size": 32}, "train", mistakes)

Mistakes are collected, not raised, so that a user sees all of them at once.
"""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from tl_jax.core.errors import UserError, did_you_mean, shorten


def replace(node: Any, keys: list[str], value: Any, full: str) -> Any:
    key, *rest = keys
    if isinstance(node, dict):
        if not rest:
            return {**node, key: literal(value)}
        return {**node, key: replace(node.get(key, {}), rest, value, full)}
    if node is None:
        raise UserError(full, "the section is not set in this config")
    types_ = typing.get_type_hints(type(node))
    if key not in types_:
        raise UserError(full, f"no such field{did_you_mean(key, types_)}")
    if rest:
        if not dataclasses.is_dataclass(getattr(node, key)) and not isinstance(getattr(node, key), dict | None):
            raise UserError(full, f"{key} has no fields")
        return dataclasses.replace(node, **{key: replace(getattr(node, key), rest, value, full)})
    if dataclasses.is_dataclass(types_[key]):
        raise UserError(full, "is a section", f"override its fields, for instance --config.{full}.FIELD=VALUE")
    mistakes: list[str] = []
    value = coerce(types_[key], value, full, mistakes, text=isinstance(value, str))
    if mistakes:
        raise UserError("", "; ".join(mistakes))
    return dataclasses.replace(node, **{key: value})


def build(cls: type, data: Any, where: str, prefix: str, mistakes: list[str]) -> Any:
    at = f"{where}: " if where else ""
    if not isinstance(data, Mapping):
        mistakes.append(f"{at}{prefix.rstrip('.') or 'the config'} must be an object of fields")
        return None
    types_ = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    values = {}
    for key, value in data.items():
        if key not in fields:
            mistakes.append(f"{at}{prefix}{key}: no such field{did_you_mean(key, fields)}")
        else:
            values[key] = coerce(types_[key], value, f"{at}{prefix}{key}", mistakes)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        mistakes.append(f"{at}{prefix}: {shorten(missing)} must be given")
        return None
    return cls(**values)


def coerce(kind: Any, value: Any, where: str, mistakes: list[str], text: bool = False) -> Any:
    """`value` as `kind`: lists become tuples, whole numbers become floats, text is read as a literal if `text`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    raw = value
    takes_text = kind is str or (str in args and origin in (types.UnionType, typing.Union)) or raw in _words(args)
    if text and not takes_text:
        value = literal(value)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None or (text and value in ("None", "null", "none")):
            if type(None) in args:
                return None
        kinds = [a for a in args if a is not type(None)]
        if len(kinds) == 1:
            return coerce(kinds[0], raw, where, mistakes, text)
    elif origin is Literal:
        if value in args:
            return value
        mistakes.append(f"{where} is {value!r}, must be one of {', '.join(map(repr, args))}")
        return None
    elif origin is tuple:
        items = list(value) if isinstance(value, list | tuple) else [value] if text else None
        if items is not None:
            variadic = len(args) == 2 and args[1] is Ellipsis
            if variadic or len(items) == len(args):
                kinds = [args[0]] * len(items) if variadic else args
                return tuple(coerce(k, v, f"{where}[{i}]", mistakes) for i, (k, v) in enumerate(zip(kinds, items)))
    elif origin is dict or kind is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif dataclasses.is_dataclass(kind):
        # A value made in Python is read as data, as its arguments were not checked.
        return build(kind, dataclasses.asdict(value) if isinstance(value, kind) else value, "", f"{where}.", mistakes)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind).replace("typing.", "")
    mistakes.append(f"{where} is {value!r} ({type(value).__name__}), must be {name}")
    return None


def _words(args: tuple) -> tuple[str, ...]:
    """What a Literal, or an optional one, allows as text: `none` there is a word of its own."""
    return tuple(a if isinstance(a, str) else "" for arg in args for a in (typing.get_args(arg) or (arg,)))


def literal(value: Any) -> Any:
    """Text as the Python or JSON value it spells, else the text itself."""
    if not isinstance(value, str):
        return value
    words = {"true": True, "false": False, "null": None, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
