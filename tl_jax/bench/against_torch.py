# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The same step in PyTorch, as a program of its own that `against.py` starts and talks to.

    python -m tl_jax.bench.against_torch < lines

The first line of stdin is the request, each further one `{"mode": "eager", "steps": 20}` or `compiled`. Every line is
answered by one of stdout: `{"ready": …}`, `{"seconds": […], "loss": …}` with the loss of the first of these steps, or
`{"failed": "why"}`. PyTorch, transformers, PEFT and timm are imported here and nowhere else in the package, and nothing
of tl_jax is.
"""

import importlib
import json
import os
import sys
import time
import warnings
from typing import Any


def main() -> None:
    """Answer until stdin ends."""
    # Whatever a library prints goes to stderr: stdout holds answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if bench is None:
                bench = Bench(asked)
                answer = bench.ready()
            else:
                answer = bench.run(asked["mode"], asked["steps"])
        # Whatever PyTorch fails with is this side's answer; the other side reports it, or refuses the comparison.
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        print(json.dumps(answer), file=answers, flush=True)


class Bench:
    """A network, its optimizer and one batch.

    Args:
      asked: `folder` of published files; `adapter`, a folder of PEFT's files or None; `library`, transformers or timm;
        `architecture`, its class or name; `batch`, an .npz of inputs and `label`; `task` and `multi_label`; `trained`,
        names of the parameters that train (None: as the adapter says); `statistics`, names of the modules whose
        running statistics follow the batch; `dtype`, float32 or bfloat16 (autocast); `device`; `threads` or None;
        `learning_rate`, `weight_decay`, `options`, `clip_norm` or None.
    """

    def __init__(self, asked: dict[str, Any]):
        import numpy as np
        import torch

        warnings.simplefilter("ignore")
        self.torch, self.asked = torch, asked
        if asked["threads"]:
            torch.set_num_threads(asked["threads"])
        self.device = torch.device(asked["device"])
        if self.device.type == "cuda":
            # XLA's default for products of float32.
            torch.set_float32_matmul_precision("high")
            torch.zeros(1, device=self.device)
        model = self._model()
        # No dropout anywhere; a BatchNorm that trains normalises by its batch.
        model.eval()
        for name, module in model.named_modules():
            if name in asked["statistics"]:
                module.train()
        self.model = model.to(self.device)
        self._choose()
        self.ours = [tensor for tensor in self.model.parameters() if tensor.requires_grad]
        rates = {"lr": asked["learning_rate"], "weight_decay": asked["weight_decay"], **asked["options"]}
        self.optimizer = torch.optim.AdamW(self.ours, **rates)
        arrays = {name: torch.from_numpy(value) for name, value in np.load(asked["batch"]).items()}
        label = arrays.pop("label")
        self.label = (label if label.is_floating_point() else label.long()).to(self.device)
        self.inputs = {name: _as_torch(name, value).to(self.device).contiguous() for name, value in arrays.items()}
        self.forwards = {"eager": self.model}

    def _model(self):
        asked = self.asked
        if asked["library"] == "timm":
            timm = importlib.import_module("timm")
            return timm.create_model(f"local-dir:{asked['folder']}", pretrained=True)
        transformers = importlib.import_module("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        cls = getattr(transformers, asked["architecture"])
        model, report = cls.from_pretrained(asked["folder"], dtype=self.torch.float32, output_loading_info=True)
        # A count of steps, which no published layout of ours has and nothing here reads.
        missing = sorted(name for name in report["missing_keys"] if not name.endswith("num_batches_tracked"))
        if missing:
            raise ValueError(f"{len(missing)} tensors are not in the file: {', '.join(missing[:3])}")
        if asked["adapter"]:
            peft = importlib.import_module("peft")
            model = peft.PeftModel.from_pretrained(model, asked["adapter"], is_trainable=True)
        return model

    def _choose(self) -> None:
        """Only what is named requires a gradient."""
        names = self.asked["trained"]
        if names is None:
            return
        found = dict(self.model.named_parameters())
        unknown = sorted(set(names) - set(found))
        if unknown:
            raise ValueError(f"{len(unknown)} parameters have other names here: {', '.join(unknown[:3])}")
        for name, tensor in found.items():
            tensor.requires_grad_(name in names)

    def ready(self) -> dict[str, Any]:
        """How many numbers train, and versions."""
        used = ["torch", self.asked["library"], *(["peft"] if self.asked["adapter"] else [])]
        versions = {name: sys.modules[name].__version__ for name in used}
        return {"ready": sum(tensor.numel() for tensor in self.ours), "versions": versions}

    def run(self, mode: str, steps: int) -> dict[str, Any]:
        """Seconds of each step, and the loss of the first of them."""
        if mode not in self.forwards:
            self.forwards[mode] = self.torch.compile(self.model)
        seconds, first = [], None
        for _ in range(steps):
            began = time.perf_counter()
            loss = self._step(self.forwards[mode])
            self._wait()
            seconds.append(time.perf_counter() - began)
            first = float(loss) if first is None else first
        return {"seconds": seconds, "loss": first}

    def _step(self, model):
        torch, clip = self.torch, self.asked["clip_norm"]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.asked["dtype"] == "bfloat16"):
            outputs = model(self.inputs["pixel_values"]) if self.asked["library"] == "timm" else model(**self.inputs)
            logits = outputs if torch.is_tensor(outputs) else outputs.logits
        loss = self._loss(logits.float())
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.ours, clip)
        self.optimizer.step()
        return loss.detach()

    def _loss(self, logits):
        """The plain mean over examples; of language models over the words of each first."""
        functional = self.torch.nn.functional
        if self.asked["task"] == "language_model":
            losses = functional.cross_entropy(logits.transpose(1, 2), self.label, ignore_index=-1, reduction="none")
            return (losses.sum(1) / (self.label >= 0).sum(1).clamp(min=1)).mean()
        if self.asked["multi_label"]:
            return functional.binary_cross_entropy_with_logits(logits, self.label)
        return functional.cross_entropy(logits, self.label)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()


def _as_torch(name: str, value):
    """Channels, or bands of frequency, before places; indices as int64."""
    if name == "pixel_values":
        return value.permute(0, 3, 1, 2)
    if name == "input_features":
        return value.transpose(1, 2)
    return value if value.is_floating_point() else value.long()


if __name__ == "__main__":
    main()
