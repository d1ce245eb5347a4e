# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a step minimises: a task's loss over a Backbone split at the cut, or any loss over any NNX module."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core.chain import Backbone, Chains
from tl_jax.plan import cut
from tl_jax.plan.resolve import Resolved
from tl_jax.train.step import Counted


@dataclasses.dataclass(frozen=True)
class ChainObjective:
    """A task's loss over a Backbone.

    Attributes:
      model: the network, abstract; only its `begin` is used.
      loss_of: (outputs, batch) -> (losses float32[B], metrics, each float32[B]); `batch["weight"]` float32[B] counts
        the examples, all alike where it is absent.
      dtype: in what the network computes.
    """

    model: Backbone
    chains: Chains
    plan: Resolved
    loss_of: Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]]
    dtype: Any = None

    def prefix(self, frozen, batch):
        """What crosses the cut: as the batch brings it, or computed."""
        if "crossing" in batch:
            return batch["crossing"]
        return cut.run_prefix(self.model, self.chains, self.plan.cut, frozen, batch, self.dtype)

    def loss(self, trained, frozen, stats, crossing, batch, key):
        """The sum of weighted losses from the cut on."""
        params = {**frozen, **stats, **trained}
        outputs, mutable = cut.run_suffix(
            self.model,
            self.chains,
            self.plan.cut,
            crossing,
            params,
            batch,
            self.plan.modes.__getitem__,
            key,
            self.dtype,
        )
        losses_B, metrics = self.loss_of(outputs, batch)
        weight_B = batch.get("weight", jnp.ones_like(losses_B))
        sums = {name: jnp.sum(values * weight_B) for name, values in metrics.items()}
        return jnp.sum(losses_B * weight_B), Counted(jnp.sum(weight_B), mutable, sums)


class ModuleObjective:
    """A user's loss over a user's module, `loss_fn(model, batch)` or `loss_fn(model, batch, key)`.

    The loss is a mean, float[], or (mean, dict of means). Variables that are no parameters (running statistics, counts
    of random streams) move as the module itself says, but those of a frozen BatchNorm stay: it uses its running ones.
    """

    def __init__(self, graphdef: nnx.GraphDef, parts: Mapping[str, tuple], frozen_norms: frozenset[str], loss_fn):
        self.graphdef, self.parts, self.frozen_norms, self.loss_fn = graphdef, parts, frozen_norms, loss_fn
        wants = inspect.signature(loss_fn).parameters.values()
        positional = [p for p in wants if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.takes_key = len(positional) > 2

    def merge(self, params: Mapping[str, jax.Array]) -> nnx.Module:
        """The module with these leaves, in the modes that it was handed over in."""
        return nnx.merge(self.graphdef, nnx.from_flat_state([(self.parts[p], leaf) for p, leaf in params.items()]))

    def prefix(self, frozen, batch):
        """Nothing: a foreign module has no stages to cut between; the compiler finds what needs no gradient."""
        return None

    def loss(self, trained, frozen, stats, crossing, batch, key):
        """The module's own mean, counted as one."""
        model = self.merge({**frozen, **stats, **trained})
        for path, module in nnx.iter_modules(model):
            if "/".join(map(str, path)) in self.frozen_norms:
                module.use_running_average = True
        result = self.loss_fn(model, batch, key) if self.takes_key else self.loss_fn(model, batch)
        value, metrics = result if isinstance(result, tuple) else (result, {})
        after = {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(nnx.as_pure(nnx.state(model)))}
        value = value.astype(jnp.float32)
        return value, Counted(jnp.ones((), jnp.float32), {path: after[path] for path in stats}, dict(metrics))
