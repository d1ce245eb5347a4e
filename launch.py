# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""python launch.py [VERB] --config=configs/x.py --workdir=runs/x; see `python launch.py --help`."""

from tl_jax.cli import main

if __name__ == "__main__":
    main()
