# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What tests compare with, imported late and quietly, because that takes seconds.

torch, transformers = references.quiet("torch", "transformers")
mixup = references.timm_module("data/mixup.py")
"""

import functools
import importlib
import importlib.util
import pathlib
import types
import warnings


@functools.cache
def quiet(*names: str) -> tuple[types.ModuleType, ...]:
    """These packages, PyTorch on one thread, without the warnings and bars of `transformers`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name: importlib.import_module(name) for name in names}
    if "torch" in found:
        found["torch"].set_num_threads(1)
    if "transformers" in found:
        found["transformers"].utils.logging.disable_progress_bar()
        found["transformers"].utils.logging.set_verbosity_error()
    return tuple(found.values())


@functools.cache
def timm_module(file: str) -> types.ModuleType:
    """One module of timm by its file: the package imports torchvision, which stays uninstalled."""
    path = pathlib.Path(importlib.util.find_spec("timm").origin).parent / file
    spec = importlib.util.spec_from_file_location(f"timm_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
