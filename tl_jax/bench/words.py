# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of the benches that are modules: `--name=value` words, and `--config.FIELD=value` overrides.

exp, given = words.read(argv, {"steps": "20"})         # --config=… is always among them
words.run(main)                                         # `error: …` and exit code 2 for wrong input
"""

import sys
from collections.abc import Callable, Mapping, Sequence

from tl_jax import config
from tl_jax.core.errors import UserError, did_you_mean


def read(argv: Sequence[str], usual: Mapping[str, str | None]) -> tuple[config.Experiment, dict[str, str]]:
    """The experiment of `--config`, overridden, and the other words.

    Args:
      usual: what they are where they are not given; None for those that must be.

    Raises:
      UserError: a word that is not known, or one that is missing; all that `config.load` refuses.
    """
    given, overrides = {"config": None, **usual}, {}
    for word in argv:
        name, _, value = word.removeprefix("--").partition("=")
        if name.startswith("config."):
            overrides[name.removeprefix("config.")] = value
        elif name in given:
            given[name] = value
        else:
            raise UserError(word, f"is no flag of this command{did_you_mean(name, given)}", "see its module's head")
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        raise UserError(" and ".join(missing), "must be given", "see the module's head")
    return config.load(given.pop("config"), overrides), given


def run(main: Callable[[Sequence[str]], None]) -> None:
    """`main` of a process of its own."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
