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
      ema: moving averages of the trained parameters, by path; empty where none are kept.
      anchor: where trained parameters are held, by path; see `train.anchor`. Empty where nothing is.
      teacher: parameters of another network that the step asks, by path; see `train.distill`. Empty without one.
    """

    step: jax.Array
    trained: dict[str, jax.Array]
    stats: dict[str, jax.Array]
    opt_state: Any
    frozen: dict[str, jax.Array]
    key: jax.Array
    ema: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    anchor: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    teacher: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @property
    def moving(self) -> dict[str, Any]:
        """What a step replaces: this is what is donated, and what a checkpoint holds."""
        moving = {"step": self.step, "trained": self.trained, "stats": self.stats, "opt_state": self.opt_state}
        return {**moving, "ema": self.ema} if self.ema else moving

    @property
    def constant(self) -> dict[str, Any]:
        """What a step only reads."""
        return {"frozen": self.frozen, "key": self.key, "anchor": self.anchor, "teacher": self.teacher}

    @property
    def params(self) -> dict[str, jax.Array]:
        """All leaves of the model by path, as training moves them."""
        return {**self.frozen, **self.stats, **self.trained}

    @property
    def adapted(self) -> dict[str, jax.Array]:
        """All leaves of the model by path, as it is evaluated and written: with averages where they are kept."""
        return {**self.params, **self.ema}
