# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Patterns over parameter paths."""

import pytest
from flax import nnx

from tl_jax.core import paths
from tl_jax.core.errors import UserError

_PATHS = ("stem/kernel", "blocks/1/kernel", "blocks/10/kernel", "blocks/10/bias", "head/kernel")


def test_flatten_joins_names_and_list_indices():
    """A list's index is one part of the path."""
    module = nnx.Dict(blocks=nnx.List([nnx.Dict(kernel=nnx.Param(1.0)), nnx.Dict(kernel=nnx.Param(2.0))]))
    assert paths.flatten(nnx.as_pure(nnx.state(module))) == {"blocks/0/kernel": 1.0, "blocks/1/kernel": 2.0}


def test_a_pattern_matches_whole_paths():
    """`blocks/1` is not a prefix of `blocks/10`."""
    assert paths.matches(("blocks/1/.*", "head/.*"), _PATHS, "w") == {"blocks/1/kernel", "head/kernel"}
    with pytest.raises(UserError, match="matches nothing"):
        paths.matches(("blocks",), _PATHS, "w")


def test_all_wrong_patterns_are_named_at_once():
    """Where, which, why, and what paths look like."""
    with pytest.raises(UserError) as error:
        paths.matches(("heads/.*", "head/.*", "(", "tail"), _PATHS, "plan.train")
    text = str(error.value)
    assert text.startswith("plan.train: 'heads/.*' matches nothing; '(' is no regular expression")
    assert "'tail' matches nothing" in text and "stem/kernel" in text and "'head/.*'" not in text


def test_first_match_wins():
    """A later rule neither overrides nor adds."""
    rules = ((r"blocks/\d+/kernel", 1.0), ("blocks/10/.*", 2.0))
    expected = {"blocks/1/kernel": 1.0, "blocks/10/kernel": 1.0, "blocks/10/bias": 2.0}
    assert paths.first_match(rules, _PATHS, "w") == expected


def test_a_rule_in_the_shadow_of_an_earlier_one_is_no_error():
    """Preset lists follow the user's own."""
    assert paths.first_match(((".*", 1.0), ("head/.*", 2.0)), _PATHS, "w") == dict.fromkeys(_PATHS, 1.0)


def test_a_rule_that_matches_no_path_is_an_error():
    """As for a plain list."""
    with pytest.raises(UserError, match="plan.lr: 'heads/.*' matches nothing"):
        paths.first_match((("heads/.*", 1.0),), _PATHS, "plan.lr")
