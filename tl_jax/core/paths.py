# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter paths: `blocks/0/attn/query/kernel`, and the patterns that speak of them.

    matches(("head/.*", r"blocks/(10|11)/.*"), paths, "plan.train")

A pattern must match a whole path (`re.fullmatch`), and one that matches no path is an error, so that a renamed
layer is never silently left out.
"""

import re
from collections.abc import Iterable, Sequence

from flax import nnx

from tl_jax.core.errors import UserError, shorten


def flatten(state: nnx.State) -> dict:
    """A pure NNX state as a flat `{path: leaf}`."""
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def matches(patterns: Sequence[str], paths: Iterable[str], where: str) -> set[str]:
    """The paths that at least one pattern matches whole.

    Raises:
      UserError: patterns that are no regular expressions or match no path, all of them at once.
    """
    paths = list(paths)
    found: set[str] = set()
    mistakes = []
    for pattern in patterns:
        try:
            hits = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as error:
            mistakes.append(f"{pattern!r} is no regular expression ({error})")
            continue
        if not hits:
            mistakes.append(f"{pattern!r} matches nothing")
        found.update(hits)
    if mistakes:
        raise UserError(where, "; ".join(mistakes), f"patterns match whole paths, such as {_examples(paths)}")
    return found


def first_match(rules: Sequence[tuple[str, object]], paths: Iterable[str], where: str) -> dict[str, object]:
    """`{path: value}` by the first rule whose pattern matches; paths without a rule are left out.

    Raises:
      UserError: as `matches` does; a rule that only matches what earlier rules took is no error.
    """
    paths = list(paths)
    matches([pattern for pattern, _ in rules], paths, where)
    values = {}
    for path in paths:
        for pattern, value in rules:
            if re.fullmatch(pattern, path):
                values[path] = value
                break
    return values


def _examples(paths: list[str]) -> str:
    step = max(1, len(paths) // 3)
    return shorten(paths[::step][:3]) or "(there are none)"
