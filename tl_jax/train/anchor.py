# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""L2-SP: trained parameters are held near the weights that they started from (Li, Grandvalet and Davoine 2018).

    anchor = Anchor(loaded=("blocks/11/mlp/up/kernel",), fresh=("head/kernel",), alpha=0.1, beta=0.01)
    start = anchor.start(params)
    penalty = anchor.penalty(trained, start)

Weight decay pulls towards zero, away from what was learnt before; this pulls back to it. Part of the objective, so its
gradient passes through the optimizer as the loss's does, and clipping and `grad_norm` see both.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Anchor:
    """What is held where, and how strongly.

    Attributes:
      loaded: trained paths that came from a file, held at their start by `alpha`.
      fresh: the other trained paths, held at zero by `beta`.
    """

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    alpha: float
    beta: float = 0.0

    def start(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Where `loaded` is held: copies, since a step gives the memory of what it replaces away."""
        return {path: jnp.copy(params[path]) for path in self.loaded}

    def penalty(self, trained: dict[str, jax.Array], start: dict[str, jax.Array]) -> jax.Array:
        """The sum alpha / 2 |w - start|² + beta / 2 |v|² over `loaded` w and `fresh` v, float32[]."""
        away = sum(jnp.sum(jnp.square(trained[path] - start[path])) for path in self.loaded)
        size = sum(jnp.sum(jnp.square(trained[path])) for path in self.fresh)
        return jnp.asarray(self.alpha / 2 * away + self.beta / 2 * size, jnp.float32)
