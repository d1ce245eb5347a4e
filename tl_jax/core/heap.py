# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The heap of this process, for programs that compute on the CPU."""

import ctypes
import sys

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next allocation; whether it does.

    XLA allocates a step's temporaries anew each time. By default glibc returns such large pieces to the system at
    once, so every step touches fresh pages: 111,000 page faults and 0.5 s of system time in a step of MiniLM. The
    process keeps its largest extent until it ends. Changes the whole process, so only a program's own start may call
    it, before there are threads. Does nothing where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # One arena without limit: the arenas of threads are cut into heaps that are unmapped when they empty.
    return all(mallopt(*pair) for pair in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)))
