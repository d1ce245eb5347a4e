# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The batches of a run: which examples, as which arrays, in which order.

    feed = Feed(exp=exp, mesh=mesh, sets=sets, transform=transform, train_plan=plan, packed=None, buckets=(32, 64))
    for batch in feed.train_batches(0, 100):          # on the devices
        ...

`engine.Engine` is one, with a network behind it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from tl_jax import config, inputs
from tl_jax.data import lengths, pipeline, views
from tl_jax.data.batches import BatchPlan
from tl_jax.data.examples import Examples
from tl_jax.data.lengths import Padding
from tl_jax.parallel import sharding
from tl_jax.train.activations import Activations, StoredRows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """What batches are made of.

    Attributes:
      exp: the config.
      mesh: devices by axis.
      sets: examples by split; windows of the records where the task takes them apart.
      transform: from a raw record to arrays.
      train_plan: which training examples make up the batch of a step; None where there is nothing to train on.
      packed: rows of several training texts, if `data.packing` asks for them.
      buckets: the padded lengths of what is evaluated; None where there is nothing to train on.
      stores: what crosses the cut, by split, once a `caching.Cache` has computed it; batches then bring it as
        `crossing` instead of inputs.
    """

    exp: config.Experiment
    mesh: jax.sharding.Mesh
    sets: Mapping[str, Examples]
    transform: Any
    train_plan: BatchPlan | None
    packed: Examples | None
    buckets: tuple[int, ...] | None
    stores: dict[str, Activations] = dataclasses.field(default_factory=dict)

    @property
    def batched(self) -> Mapping[str, Examples]:
        """`sets`, with rows of several texts as training examples where they are packed."""
        return self.sets if self.packed is None else {**self.sets, "train": self.packed}

    @property
    def padding(self) -> Padding | None:
        """What the batches of an epoch hold beside examples; None where these have no length."""
        found = lengths.padding(self.train_plan)
        if self.packed is None:
            return found
        return dataclasses.replace(found, rows=len(self.packed), texts=len(self.sets["train"].records))

    @property
    def steps_per_epoch(self) -> int:
        """Updates that see as many training examples as there are: each once, unless `data.sampler` draws them."""
        return self.train_plan.steps_per_epoch

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A batch of this process' rows as global arrays, sharded by example; arrays on devices stay."""
        return sharding.put_batch(batch, self.mesh)

    def train_batches(self, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        """Batches of the run's steps [start, stop), on the devices: a pure function of the seed and the step."""
        return self._batches(self.batched["train"], self.train_plan, start, stop, self.exp.seed, augment=True)

    def eval_batches(self, examples: Examples) -> Iterator[dict[str, jax.Array]]:
        """All examples once, sorted by padded length; the last batch is filled up with examples of weight 0."""
        plan = self.eval_plan(examples)
        return self._batches(examples, plan, 0, plan.steps_per_epoch, 0, augment=False)

    def view_batches(self, count: int) -> Iterator[dict[str, jax.Array]]:
        """`count` changed versions of all training examples, view by view, each as `eval_batches` orders them."""
        train, plan = self.sets["train"], self.eval_plan(self.sets["train"])
        host = pipeline.batches(
            views.numbered(views.repeated(train, count)),
            views.ViewTransform(self.transform, len(train), self.exp.seed),
            views.CycledPlan(plan, len(train), count),
            start=0,
            stop=count * plan.steps_per_epoch,
            rows=sharding.process_rows(self.mesh, plan.batch_size),
            seed=0,
            augment=False,
            threads=self.exp.data.threads,
        )
        return pipeline.on_device(host, self.place)

    def eval_plan(self, examples: Examples) -> BatchPlan:
        """Which examples make up the batches of `eval_batches`."""
        size = self.exp.train.eval_batch_size or self.exp.train.batch_size
        lengths_N = self.transform.lengths(examples)
        buckets = self.train_plan.buckets if examples is self.packed else self.buckets
        if buckets is None:
            buckets = inputs.buckets(self.exp.data, self.transform, lengths_N)
        return BatchPlan(len(examples), size, seed=0, shuffle=False, lengths=lengths_N, buckets=buckets)

    def abstract_batch(
        self, batch_size: int, length: int | None = None, split: str = "train"
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of a split's inputs, the longest that the config allows unless `length` says otherwise."""
        examples, longest = self.batched[split], self.exp.data.max_length
        arrays = self.transform.collate([self.transform(examples[0], None)], longest)
        # Of the inputs only sequences follow the length, along their second axis.
        cut_short = {} if length is None else {name: x[:, :length] for name, x in arrays.items()}
        arrays |= {
            "label": examples.labels[:1].astype(np.float32 if examples.multi_label else np.int32),
            "weight": np.zeros(1, np.float32),
            "id": np.zeros(1, np.int32),
            **cut_short,
        }
        place = sharding.batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=place)
            for name, x in arrays.items()
        }

    def source(self, examples: Examples, plan: BatchPlan, augment: bool) -> tuple[Examples, Any, Any]:
        """What batches are made of: these examples, how to transform them and their plan, or what takes their place
        where what crosses the cut is kept."""
        transform = self.transform
        for split, store in self.stores.items():
            positions = examples.within(self.batched[split])
            # Views are for training; what is evaluated is not changed.
            if positions is not None and (augment or not store.views):
                if store.views:
                    plan = views.CycledPlan(plan, len(examples), store.views)
                    examples = views.repeated(examples, store.views)
                    positions = np.arange(len(examples))
                examples = examples.instead(lambda index, at=positions: {"position": at[index]})
                return examples, StoredRows(store), plan
        return examples, transform, plan

    def _batches(self, examples: Examples, plan: BatchPlan, start: int, stop: int, seed: int, augment: bool):
        examples, transform, plan = self.source(examples, plan, augment)
        host = pipeline.batches(
            examples,
            transform,
            plan,
            start=start,
            stop=stop,
            rows=sharding.process_rows(self.mesh, plan.batch_size),
            seed=seed,
            augment=augment,
            threads=self.exp.data.threads,
        )
        return pipeline.on_device(host, self.place)
