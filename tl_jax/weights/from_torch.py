# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch files to safetensors, in a process of its own: reading a pickle is the one thing that can run foreign code.

`torch.load(weights_only=True)` of torch 2.10 or later, never a fallback; torch comes with the `[torch]` extra.
"""

import json
import pathlib
import shutil
import subprocess
import sys

from tl_jax.core.errors import UserError

_KEPT = (".json", ".txt", ".model")
_MIN_TORCH = (2, 10)


def convert_in_subprocess(file: pathlib.Path, target: pathlib.Path) -> int:
    """Write `target/model.safetensors` and copy the small files that lie beside `file`.

    Returns:
      How many tensors.

    Raises:
      UserError: no such file, no torch, a file that is more than tensors by name, a target that is not empty.
    """
    if not file.is_file():
        raise UserError(str(file), "no such file")
    if target.exists() and any(target.iterdir()):
        raise UserError(str(target), "is not empty", "give a new folder")
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tl_jax.weights.from_torch", str(file), str(target / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        result = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        result = {"error": f"could not be read ({last})", "do": ""}
    if "error" in result:
        if not any(target.iterdir()):
            target.rmdir()
        raise UserError(str(file), result["error"], result["do"])
    for other in sorted(file.parent.iterdir()):
        if other.suffix in _KEPT and other.is_file() and ".index." not in other.name:
            shutil.copyfile(other, target / other.name)
    return result["tensors"]


def _convert(file: str, target: str) -> dict:
    try:
        import torch
    except ModuleNotFoundError:
        return {"error": "needs PyTorch to be read", "do": "run: pip install 'tl_jax[torch]'"}
    import pickle

    from safetensors.torch import save_file

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _MIN_TORCH:
        wanted = ".".join(map(str, _MIN_TORCH))
        return {"error": f"torch {torch.__version__} reads pickles unsafely", "do": f"install torch >= {wanted}"}
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        return {"error": f"holds more than tensors, or is broken ({str(error).splitlines()[0]})", "do": ""}
    for name in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    odd = [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)] if isinstance(content, dict) else [""]
    if odd:
        return {"error": f"is not a dict of tensors by name (see {odd[:3]})", "do": "save its state_dict()"}
    # Tied weights share memory, which safetensors refuses; contiguous copies do not.
    save_file({name: t.detach().clone().contiguous() for name, t in content.items()}, target, {"format": "pt"})
    return {"tensors": len(content)}


if __name__ == "__main__":
    print(json.dumps(_convert(*sys.argv[1:])))
