# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What decides the arrays that a network gets to see, in 64 letters: the records of a set and what is made of them.

fingerprint(examples, transform)      # sha256; another one as soon as a byte of a file or a setting is another

Records that lie in files of their own are told apart by the files' bytes, so that nothing is decoded for it; all others
by what they hold.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tl_jax.data.examples import Examples


def fingerprint(examples: Examples, transform: Any) -> str:
    """sha256 over all records in their order, and what the transform says of itself.

    Args:
      transform: with an `identity`, a text that names all it depends on; of one without, what it makes of every record
        is taken, without random changes.
    """
    told = getattr(transform, "identity", None)
    digest = hashlib.sha256(repr(told).encode())
    for index in range(len(examples)):
        content = examples.content(index) if told is not None else transform(examples[index], None)
        digest.update(_digest(content))
    return digest.hexdigest()


def _digest(content: Any) -> bytes:
    """Of fixed length, so that what follows cannot be taken for a part of it."""
    if isinstance(content, Mapping):
        parts = [repr(name).encode() + _digest(content[name]) for name in sorted(content)]
    elif isinstance(content, np.ndarray):
        parts = [repr((str(content.dtype), content.shape)).encode(), np.ascontiguousarray(content).tobytes()]
    else:
        parts = [content if isinstance(content, bytes) else repr(content).encode()]
    return hashlib.sha256(b"".join(parts)).digest()
