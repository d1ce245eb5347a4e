# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""tl_jax: a transfer-learning engine for JAX.

    pretrained = tl_jax.load_pretrained("path/to/folder-or-hub-id")
    result = tl_jax.run(tl_jax.config.load("configs/quickstart.py"), workdir="runs/quickstart")

Names are loaded when first used, so that `import tl_jax` is quick and reading a config imports no JAX.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "load_pretrained": "tl_jax.pretrained",
    "Pretrained": "tl_jax.pretrained",
    "load_adapter": "tl_jax.adapting",
    "save_adapter": "tl_jax.adapting",
    "build": "tl_jax.engine",
    "run": "tl_jax.runs",
    "load_run": "tl_jax.runs",
    "sweep": "tl_jax.sweeping",
    "make_step": "tl_jax.train.embed",
    "zero_shot": "tl_jax.prompts",
    "UserError": "tl_jax.core.errors",
}
__all__ = sorted([*_HOMES, "config"])


def __getattr__(name: str):
    if name == "config":
        return importlib.import_module("tl_jax.config")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tl_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_HOMES, "config"])
