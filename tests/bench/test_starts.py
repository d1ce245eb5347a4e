# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What later starts of a run spend on compiling."""

import re

import makers

from tl_jax.bench import starts


def test_a_second_start_finds_the_programs_of_the_first(tmp_path, capfd):
    """The folder is empty at the first start, and every start is a whole run."""
    exp = makers.write_config(makers.text_run(tmp_path, epochs=None, steps=2), tmp_path / "exp.json")
    starts.main([f"--config={exp}"])
    *_, first, second = (re.split(r"\s*\|\s*", line)[1:-1] for line in capfd.readouterr().out.strip().splitlines())
    assert [first[0], first[3], first[4], second[0]] == ["1", "0", "1.00", "2"] and int(second[3]) > 0
