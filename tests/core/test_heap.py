# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The heap keeps what is freed, in a process that asked for it and in no other."""

import subprocess
import sys

import pytest

_COUNT = """
import ctypes, resource
{ask}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def once():
    piece = libc.malloc(64 << 20)
    ctypes.memset(piece, 1, 64 << 20)
    libc.free(piece)

once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(ask: str) -> int:
    """Page faults of taking and freeing 64 MB four times more."""
    return int(subprocess.run([sys.executable, "-c", _COUNT.format(ask=ask)], capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults():
    """Nearly none, where by default each of the 16384 pages faults again each time."""
    asked = faults("from tl_jax.core import heap; assert heap.keep_freed_memory()")
    # Huge pages, where the system has them on, make the default few faults too.
    assert asked < 100 <= faults("")
