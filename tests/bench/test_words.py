# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The words of the benches that are modules: nothing that is written is dropped."""

import makers
import pytest

from tl_jax.bench import words
from tl_jax.core.errors import UserError


def test_words_and_overrides_are_told_apart(tmp_path):
    """Those that are not given are as usual."""
    file = makers.write_config(makers.text_run(tmp_path), tmp_path / "c.json")
    exp, given = words.read([f"--config={file}", "--config.seed=7", "--steps=3"], {"steps": "20", "repeats": "2"})
    assert exp.seed == 7 and given == {"steps": "3", "repeats": "2"}


@pytest.mark.parametrize(
    "argv,message",
    [
        (["--config=quickstart", "--stesp=3"], "--stesp=3: is no flag.*steps"),
        ([], "--config and --steps: must be given"),
    ],
)
def test_wrong_words_are_refused_with_exit_code_2(argv, message, monkeypatch, capsys):
    """In one line, on stderr."""
    with pytest.raises(UserError, match=message):
        words.read(argv, {"steps": None})
    monkeypatch.setattr("sys.argv", ["bench", *argv])
    with pytest.raises(SystemExit) as left:
        words.run(lambda argv: words.read(argv, {"steps": None}))
    assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1
