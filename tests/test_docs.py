# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The commands that the documentation promises: every block under a line `<!-- tested -->` is run."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import makers
import pytest

_BLOCK = re.compile(r"^<!-- tested -->\n+```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages() -> dict[pathlib.Path, str]:
    """The marked commands of every page that has some, in order."""
    files = [makers.ROOT / "README.md", *sorted((makers.ROOT / "docs").rglob("*.md"))]
    found = {file: "".join(_BLOCK.findall(file.read_text())) for file in files if file.exists()}
    return {file: commands for file, commands in found.items() if commands}


def test_the_documentation_has_tested_commands():
    """A changed marker must not switch the tests off."""
    assert [page for page in pages() if page.parent.name == "docs"]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page, tmp_path):
    """One after the other in one empty folder, as a reader would run them; `launch.py` is that of this tree."""
    python = shlex.quote(sys.executable)
    commands = pages()[page].replace("python launch.py", f"{python} {shlex.quote(str(makers.ROOT / 'launch.py'))}")
    commands = re.sub(r"^python ", f"{python} ", commands, flags=re.MULTILINE)
    env = {**os.environ, "PYTHONPATH": str(makers.ROOT)}
    shell = ["bash", "-euxo", "pipefail", "-c", commands]
    done = subprocess.run(shell, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
