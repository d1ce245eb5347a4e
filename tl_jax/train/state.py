# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a training run: a plain pytree, what moves and what never does apart."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything a step reads.

    Attributes:
      step: int32[], optimizer updates done.
      trained: float32 parameters that train, by path.
      stats: running statistics (and whatever else a module updates itself), by path.
      opt_state: of the optimizer, over `trained` only.
      frozen: all other parameters, by path; a step reads them and never returns them.
      key: from which the key of every step is folded.
    """

    step: jax.Array
    trained: dict[str, jax.Array]
    stats: dict[str, jax.Array]
    opt_state: Any
    frozen: dict[str, jax.Array]
    key: jax.Array

    @property
    def moving(self) -> dict[str, Any]:
        """What a step replaces: this is what is donated, and what a checkpoint holds."""
        return {"step": self.step, "trained": self.trained, "stats": self.stats, "opt_state": self.opt_state}

    @property
    def constant(self) -> dict[str, Any]:
        """What a step only reads."""
        return {"frozen": self.frozen, "key": self.key}

    @property
    def params(self) -> dict[str, jax.Array]:
        """All leaves of the model by path."""
        return {**self.frozen, **self.stats, **self.trained}
