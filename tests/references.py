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


def peft_logits(base: str, adapter: pathlib.Path, ids):
    """int[B, T] -> float32[B, 3]: what PEFT makes of a published BERT with an adapter and a head of three classes."""
    peft, torch, transformers = quiet("peft", "torch", "transformers")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = transformers.BertForSequenceClassification.from_pretrained(base, num_labels=3)
        return peft.PeftModel.from_pretrained(model, adapter).eval()(torch.from_numpy(ids)).logits.numpy()
