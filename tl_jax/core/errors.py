# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Errors that are the user's to mend, and the words in which they are told.

    raise UserError("data/train.tsv", "row 7 has 3 columns, the header has 2", "quote the tabs or remove them")

The command line prints a `UserError` as one line and exits with 2; anything else is a defect of ours.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user wrote is wrong: where, what was found and expected, what to do.

    Args:
      where: the file, field or path that is wrong.
      what: what was found there and what was expected.
      do: the way out, as an instruction; may be empty where `what` already says it.
    """

    def __init__(self, where: str, what: str, do: str = ""):
        self.where, self.what, self.do = where, what, do
        text = ": ".join(part for part in (where, what) if part)
        if not text.endswith("?"):
            text += "."
        super().__init__(f"{text} {_capital(do)}." if do else text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the nearest of `known`, or the list of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(known)}" if known else ""


def shorten(items: Iterable[str], limit: int = 6) -> str:
    """'a, b, c and 12 more': a list that stays one line."""
    items = list(items)
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")
