# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The small JSON files beside a checkpoint's weights.

    read_json(checkpoint, "tokenizer_config.json")              # {} where there is none
    fields, where = processor(checkpoint, "image_processor")    # what the checkpoint says of its inputs

Knows names and JSON, not what the fields mean.
"""

import json
import pathlib
from typing import Any

from tl_jax.core.errors import UserError


def beside(checkpoint: pathlib.Path, name: str) -> pathlib.Path:
    """A file of the checkpoint's folder; `checkpoint` may be one of the files in it."""
    return (checkpoint if checkpoint.is_dir() else checkpoint.parent) / name


def read_json(checkpoint: pathlib.Path | None, name: str) -> dict[str, Any]:
    """The object in a file of the checkpoint; empty where there is no such file, or no checkpoint.

    Raises:
      UserError: a file that holds no JSON object.
    """
    if checkpoint is None or not beside(checkpoint, name).is_file():
        return {}
    file = beside(checkpoint, name)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(file), f"is not JSON ({error})", "fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise UserError(str(file), "holds no JSON object", "fetch the checkpoint again")
    return content


def processor(checkpoint: pathlib.Path | None, part: str) -> tuple[dict[str, Any], str]:
    """What the checkpoint says of its inputs, and the file that says it; empty where none does.

    Args:
      part: `image_processor` or `feature_extractor`: the field of `processor_config.json`, in which transformers 5
        saves the parts of a processor; `preprocessor_config.json` holds one alone.

    Raises:
      UserError: a file that holds no JSON object.
    """
    name = "processor_config.json"
    fields = read_json(checkpoint, name).get(part)
    if not isinstance(fields, dict):
        name = "preprocessor_config.json"
        fields = read_json(checkpoint, name)
    return fields, "" if checkpoint is None else str(beside(checkpoint, name))
