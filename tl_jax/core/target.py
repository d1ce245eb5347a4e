# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The platform that programs are traced for, where what suits it is chosen while tracing.

if target.platform() == "cpu": ...
with target.traced_for("tpu"):        # in a process that has none, to see what a pod would do
    compiled = step.lower(*abstract).compile()
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_asked: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: this process's, unless another was asked for."""
    return _asked.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(name: str | None) -> Iterator[None]:
    """What is traced within is for this platform; None leaves it as it is."""
    token = _asked.set(name or _asked.get())
    try:
        yield
    finally:
        _asked.reset(token)
