# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What XLA may not compute anew wherever it is read, on CPUs.

x = held(x)                                              # between the blocks of a network
step = jax.jit(step, compiler_options=compiler_options())
forward = inlined(jax.jit(forward, compiler_options=compiler_options()))     # within another `jit` or `vmap` too
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from tl_jax.core import target


def held(x: Any) -> Any:
    """The same arrays, computed once, and so their gradients.

    A residual stream is one long sum. On a CPU, XLA merges it into all that reads it, which then adds up the shares of
    all blocks before, or in the gradient of all behind: a step's time grows with the square of the depth.
    """
    # One by one: what is not read in the end is then not computed either.
    return jax.tree.map(jax.lax.optimization_barrier, x) if target.platform() == "cpu" else x


def compiler_options() -> dict[str, Any]:
    """For `jax.jit` of what has barriers, those of `jax.checkpoint` too.

    On a CPU, XLA takes them away before it merges and orders operations, unless it is told to leave that pass out.
    """
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if target.platform() == "cpu" else {}


def inlined(jitted: Callable) -> Callable:
    """The jitted function, and within a trace the function itself: there `jax.jit` refuses options of a compiler."""

    @functools.wraps(jitted)
    def call(*arguments):
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))
        return (jitted.__wrapped__ if traced else jitted)(*arguments)

    return call
