# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Examples that stay on the devices, and batches of them made within a program.

    data = Kept(arrays, finish)                        # an argument of jitted functions
    batch = data.batch(rows, weights, drawn)           # within one of them

What is kept may be smaller than what a network reads, as the bytes of images are; `finish` makes up the difference.
Knows arrays, not what they are of.
"""

# B batch, K integers

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """N examples.

    Attributes:
      arrays: by name, trees of [N, …], in the form in which they are kept; labels too.
      finish: (arrays [B, …] of a batch, int32[B, K]) -> what a batch has of them.
    """

    arrays: dict[str, Any]
    finish: Callable[[dict[str, Any], jax.Array], dict[str, Any]] = dataclasses.field(metadata={"static": True})

    def batch(self, rows: jax.Array, weights: jax.Array, drawn_BK: jax.Array) -> dict[str, Any]:
        """A batch as the host would make it.

        Args:
          rows: int32[B], the examples.
          weights: float32[B].
          drawn_BK: int32, what was drawn for each.
        """
        picked = jax.tree.map(lambda x: x[rows], self.arrays)
        return {**self.finish(picked, drawn_BK), "weight": weights, "id": rows}
