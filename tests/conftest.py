# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What every test may ask for: eight simulated devices, the real data, the published weights of the demo."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

_ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and weights; a machine without it skips, CI fails."""
    path = pathlib.Path(os.environ.get("TL_JAX_TEST_DATA", _ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        message = f"no real data at {path}; set TL_JAX_TEST_DATA"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return path
