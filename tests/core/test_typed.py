# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Values against declared types."""

import dataclasses
from typing import Any, Literal

import pytest

from tl_jax.core import typed


@dataclasses.dataclass(frozen=True)
class Inner:
    """A section."""

    size: int


@dataclasses.dataclass(frozen=True)
class Outer:
    """Every kind of field that configs have."""

    inner: Inner
    rate: float = 0.5
    flag: bool = False
    name: str | None = None
    mode: Literal["none", "all"] = "all"
    maybe: Literal["a", "b"] | None = None
    rules: tuple[tuple[str, float], ...] = ()
    pair: tuple[int, str] = (1, "x")
    free: dict[str, Any] = dataclasses.field(default_factory=dict)


def coerced(kind, value, text=False):
    """The value, or the mistakes."""
    mistakes = []
    found = typed.coerce(kind, value, "f", mistakes, text)
    return mistakes or found


@pytest.mark.parametrize(
    "kind,text,expected",
    [
        (int, "20", 20),
        (float, "1e-3", 1e-3),
        (float, "3", 3.0),
        (bool, "true", True),
        (bool, "False", False),
        (str, "1e-3", "1e-3"),
        (str, "none", "none"),
        (str | None, "none", None),
        (int | None, "None", None),
        (Literal["none", "all"], "none", "none"),
        (Literal["a", "b"] | None, "a", "a"),
        (Literal["a", "b"] | None, "null", None),
        (tuple[str, ...], "head/.*", ("head/.*",)),
        (tuple[str, ...], "('a', 'b')", ("a", "b")),
        (tuple[int, ...], "[1, 2]", (1, 2)),
        (tuple[int, ...], "8", (8,)),
        (tuple[tuple[str, float], ...], "(('head/.*', 10),)", (("head/.*", 10.0),)),
        (dict[str, Any], "{'b2': 0.98}", {"b2": 0.98}),
    ],
)
def test_text_is_read_as_the_declared_type(kind, text, expected):
    """What a command line gives becomes the value of the field's type, to its very type."""
    found = coerced(kind, text, text=True)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "kind,value",
    [
        (int, True),
        (int, 2.0),
        (int, "2"),
        (float, True),
        (float, "1e-3"),
        (bool, 1),
        (str, 1),
        (int, None),
        (Literal["a", "b"], "c"),
        (tuple[str, ...], "head/.*"),
        (tuple[str, ...], {"a": 1}),
        (tuple[int, str], (1, "a", 2)),
        (tuple[tuple[str, float], ...], (("head/.*", "x"),)),
        (dict[str, Any], [1]),
    ],
)
def test_another_type_is_refused(kind, value):
    """Nothing is guessed from data; the mistake shows the value."""
    (mistake,) = coerced(kind, value)
    assert mistake.startswith("f") and "must be" in mistake


@pytest.mark.parametrize("kind,text", [(int, "1.5"), (int, "1e3"), (float, "x"), (bool, "yes"), (int, "none")])
def test_text_of_another_type_is_refused(kind, text):
    """Text is read as a literal first."""
    (mistake,) = coerced(kind, text, text=True)
    assert "must be" in mistake


def test_build_collects_every_mistake_with_its_place():
    """Unknown fields with the nearest name, wrong types in sections."""
    mistakes = []
    typed.build(Outer, {"inner": {"size": "x"}, "rat": 1, "pair": [1, 2]}, "c.json", "", mistakes)
    assert len(mistakes) == 3
    assert any("inner.size is 'x' (str), must be int" in mistake for mistake in mistakes)
    assert any("rat: no such field; did you mean 'rate'?" in mistake for mistake in mistakes)
    assert any("pair[1] is 2 (int), must be str" in mistake for mistake in mistakes)


@pytest.mark.parametrize("data", [{}, {"inner": {}}, {"inner": 3}, []])
def test_build_wants_what_has_no_default(data):
    """A missing required field and a section that is none are mistakes, not exceptions."""
    mistakes = []
    typed.build(Outer, data, "", "", mistakes)
    assert mistakes


def test_build_reads_what_asdict_wrote():
    """Lists in place of tuples included."""
    outer = Outer(Inner(3), 1.0, True, "n", "none", "b", (("a", 1.0),), (2, "y"), {"k": [1]})
    mistakes = []
    data = {**dataclasses.asdict(outer), "rules": [["a", 1]], "pair": [2, "y"]}
    assert typed.build(Outer, data, "", "", mistakes) == outer and not mistakes
