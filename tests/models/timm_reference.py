# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The reference of the `timm` layouts, as a program of its own: `timm` imports torchvision, which stays uninstalled.

    python timm_reference.py make FOLDER '{"a": {"architecture": "resnet18", "model_args": {}, "image_size": 33}, …}'
    python timm_reference.py check FOLDER OTHER
    python timm_reference.py groups FOLDER '{"a": {"architecture": "resnet18"}, …}'

`make` writes FOLDER/a as `timm` publishes a network, every tensor drawn anew, with `reference.npz`: `pixel_values`
float32[2, S, S, C], `logits`, and `features` as `forward_features` gives them, channels last. A `gain` above 1 widens
the kernels, where a deep network would lose its input. `check` lets `timm` load OTHER/a strictly and fails unless it
gives the recorded logits to the bit. `groups` writes FOLDER/a.json with the multiple of the rate and the weight decay
of every parameter, where layers decay by 0.7 and weights by 0.05. Many networks go in one start, since the imports are
what takes long.
"""

import importlib.machinery
import json
import pathlib
import sys
import types

_STUBS = "datasets models models.feature_extraction ops ops.misc transforms transforms.functional utils".split()


def import_timm():
    """`timm`, with empty classes for whatever it asks of torchvision."""
    for name in ("torchvision", *(f"torchvision.{part}" for part in _STUBS)):
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        module.__getattr__ = _empty_class
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    import timm

    return timm


class _Names(type):
    def __getattr__(cls, name):
        return _empty_class(name)


def _empty_class(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Names(name, (), {})


def redraw(model, gain):
    """Every tensor drawn anew, such that features are of order 1 and none hides behind a zero or a one."""
    for path, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if path.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1:
            tensor.normal_(1.0 if path.endswith("weight") else 0.0, 0.2)
        elif path.endswith(("_embed", "_token")):
            tensor.normal_(0.0, 0.5)
        else:
            tensor.normal_(0.0, gain * tensor[0].numel() ** -0.5)


def make(folder, spec):
    timm = import_timm()
    import numpy as np
    import torch
    from timm.models import save_for_hf

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for name, entry in spec.items():
        model_args = entry.get("model_args", {})
        model = timm.create_model(entry["architecture"], **model_args).eval()
        redraw(model, entry.get("gain", 1.0))
        save_for_hf(model, folder / name, model_args=model_args, safe_serialization=True)
        size = entry.get("image_size", 33)
        pixels = rng.normal(size=(2, size, size, model_args.get("in_chans", 3))).astype(np.float32)
        features = model.forward_features(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        logits = model.forward_head(features)
        if features.ndim == 4 and features.shape[1] == model.num_features:
            features = features.permute(0, 2, 3, 1)
        np.savez(folder / name / "reference.npz", pixel_values=pixels, features=features, logits=logits)


def check(folder, other):
    timm = import_timm()
    import numpy as np
    import torch
    from safetensors.torch import load_file

    for saved in other.iterdir():
        reference = np.load(folder / saved.name / "reference.npz")
        model = timm.create_model(f"local-dir:{saved}", pretrained=True).eval()
        model.load_state_dict(load_file(saved / "model.safetensors"), strict=True)
        logits = model(torch.from_numpy(reference["pixel_values"]).permute(0, 3, 1, 2))
        assert np.array_equal(logits, reference["logits"]), f"{saved.name}: other logits"


def groups(folder, spec):
    timm = import_timm()
    from timm.optim import param_groups_layer_decay

    for name, entry in spec.items():
        model = timm.create_model(entry["architecture"], **entry.get("model_args", {}))
        names = {parameter: name for name, parameter in model.named_parameters()}
        spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        found = param_groups_layer_decay(model, 0.05, spared, layer_decay=0.7)
        by_name = {names[p]: (group["lr_scale"], group["weight_decay"]) for group in found for p in group["params"]}
        (folder / f"{name}.json").write_text(json.dumps(by_name))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        if sys.argv[1] in ("make", "groups"):
            {"make": make, "groups": groups}[sys.argv[1]](pathlib.Path(sys.argv[2]), json.loads(sys.argv[3]))
        else:
            check(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
