# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What every test may ask for: eight simulated devices, the real data, the published weights of the demo."""

import gc
import os
import pathlib

import jax
import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# One folder a worker: cache files are not written atomically.
_CACHE = _ROOT / ".pytest_cache" / os.environ.get("PYTEST_XDIST_WORKER", "alone")

# Tracing makes millions of objects and hardly a cycle: to look for some less often takes a tenth off.
gc.set_threshold(100_000, 20, 20)
jax.config.update("jax_num_cpu_devices", 8)
# Compiling takes longer than all that the tests compute, so it is done quickly and kept for the next time. Processes
# that a test starts inherit both.
_FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    # With these fusions a program takes 1.5 times as long to compile; later versions have no other.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ["XDG_CACHE_HOME"] = str(_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", str(_CACHE / "tl_jax" / "compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and weights; a machine without it skips, CI fails."""
    path = pathlib.Path(os.environ.get("TL_JAX_TEST_DATA", _ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        message = f"no real data at {path}; set TL_JAX_TEST_DATA"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return path


@pytest.fixture(scope="module")
def one_device():
    """A module about other things than devices sees one of them, for which everything compiles faster."""
    here = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: here)
        yield
