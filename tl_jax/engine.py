# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Assembles a run from a config; the only module that knows every folder.

    engine = build(exp)                               # pure pieces, nothing started, nothing read but headers and data
    state = engine.init()                             # weights on the devices, frozen and trained apart
    for batch in engine.train_batches(0, 100):
        state, metrics = engine.train_step(state, batch)

Everything here can be used inside somebody else's loop; `runs.run` is the loop that the command line uses.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tl_jax import caching, config, inputs, loading, remedies
from tl_jax.core import chain, plugins
from tl_jax.core.chain import EVAL, Chains
from tl_jax.core.errors import UserError
from tl_jax.data import pipeline, splits
from tl_jax.data.batches import BatchPlan
from tl_jax.data.examples import Examples
from tl_jax.parallel import mesh as meshes
from tl_jax.parallel import sharding
from tl_jax.plan import cut
from tl_jax.plan.resolve import Resolved, resolve
from tl_jax.pretrained import Checkpoint, Loaded, Pretrained
from tl_jax.train import optimizer, schedule
from tl_jax.train.activations import Activations, StoredRows
from tl_jax.train.objective import ChainObjective
from tl_jax.train.state import State
from tl_jax.train.step import Step, initial_state


@dataclasses.dataclass(frozen=True)
class Engine:
    """The pieces of a run.

    Attributes:
      exp: the config.
      mesh: devices by axis.
      sets: examples by split; windows of the records where the task takes them apart.
      transform: from a raw record to arrays.
      task: the head, loss and metrics.
      model: the network, abstract, head included.
      chains: its stages.
      plan: what happens to every parameter.
      steps: updates in the whole run; `steps_per_epoch` of them see as many training examples as there are.
      schedule, tx: the learning rate by step, and the optimizer over trained parameters.
      step: the training step; `train_step` and `step_fn` are it, jitted and not.
      callbacks: told of what happens in `runs.run`.
      stores: what crosses the cut, by split, once a `caching.Cache` has computed it; batches then bring it as
        `crossing` instead of inputs.
    """

    exp: config.Experiment
    mesh: jax.sharding.Mesh
    sets: Mapping[str, Examples]
    transform: Any
    task: Any
    checkpoint: Checkpoint
    model: chain.Backbone
    chains: Chains
    plan: Resolved
    train_plan: BatchPlan | None
    steps: int
    schedule: optax.Schedule
    tx: optax.GradientTransformation
    step: Step
    callbacks: Sequence[Any] = ()
    stores: dict[str, Activations] = dataclasses.field(default_factory=dict)

    @property
    def add_head(self):
        """What puts the task's stages and the plan's adapters on a network."""
        return loading.adder(self.task, self.exp.plan, self.checkpoint)

    @property
    def steps_per_epoch(self) -> int:
        """Updates that see as many training examples as there are: each once, unless `data.sampler` draws them."""
        return self.train_plan.steps_per_epoch

    def init(self) -> State:
        """The state at step 0: weights read from the file, a fresh head, empty optimizer slots."""
        return self.init_with_receipt()[0]

    def init_with_receipt(self) -> tuple[State, Loaded]:
        """The state at step 0, and what loading did."""
        key = jax.random.key(self.exp.seed)
        loaded = loading.load(
            loading.read_from(self.exp.model, self.checkpoint),
            self.model,
            self.add_head,
            fresh=self.exp.model.fresh,
            key=jax.random.fold_in(key, 0),
            dtype="float32",
            mesh=self.mesh,
        )
        return self.state_of(loaded.params), loaded

    def state_of(self, params: chain.Params) -> State:
        """A state at step 0 with these leaves."""
        shardings = self.shardings()["opt_state"]

        def first():
            return jnp.zeros((), jnp.int32), jax.random.fold_in(jax.random.key(self.exp.seed), 1)

        # Made where they lie: `device_put` reaches no device of another process.
        step, key = jax.jit(first, out_shardings=sharding.replicated(self.mesh))()
        groups, kept = (self.plan.trained, self.plan.moving), (self.step.anchor, bool(self.step.ema))
        state = initial_state(params, *groups, self.tx, key, shardings, *kept)
        return dataclasses.replace(state, step=step)

    def train_step(self, state: State, batch: Mapping[str, Any]) -> tuple[State, dict[str, jax.Array]]:
        """One jitted, donated update; `batch` holds the global batch, on the host or on the devices."""
        return self.step(state, batch)

    def step_fn(self, state: State, batch: Mapping[str, Any]) -> tuple[State, dict[str, jax.Array]]:
        """The same update unjitted, for an outer `jit`, `scan` or `vmap`."""
        return self.step.fn(state, batch)

    @functools.cached_property
    def _eval(self):
        def forward(params, batch):
            below = self.plan.cut if "crossing" in batch else dict.fromkeys(self.chains, 0)
            crossing = batch.get("crossing", {})
            outputs, _ = cut.run_suffix(
                self.model, self.chains, below, crossing, params, batch, lambda _: EVAL, dtype=self._dtype
            )
            found = dict(outputs)
            if "label" in batch:
                losses, metrics = self.task.loss(outputs, batch)
                found |= {**metrics, "loss": losses}
            # Copied to every device: the host then reads it whole, on any number of processes.
            kept = {name: found[name] for name in (*self.task.outputs, "loss") if name in found}
            kept |= {name: batch[name] for name in ("weight", "id") if name in batch}
            return jax.lax.with_sharding_constraint(kept, sharding.replicated(self.mesh))

        return jax.jit(forward)

    def eval_step(self, state: State, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The task's outputs, `weight`, `id` where the batch has it and, with labels, `loss` float32[B]: no dropout,
        running statistics."""
        batch = self.place(batch)
        if "weight" not in batch:
            batch["weight"] = jnp.ones(len(batch[self.checkpoint.family.INPUTS[0]]), jnp.float32)
        return self._eval(state.adapted, batch)

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A batch of this process' rows as global arrays, sharded by example; arrays on devices stay."""
        return sharding.put_batch(batch, self.mesh)

    def train_batches(self, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        """Batches of steps [start, stop), on the devices: a pure function of the seed and the step."""
        return self._batches(self.sets["train"], self.train_plan, start, stop, self.exp.seed, augment=True)

    def eval_batches(self, examples: Examples) -> Iterator[dict[str, jax.Array]]:
        """All examples once, sorted by padded length; the last batch is filled up with examples of weight 0."""
        plan = self.eval_plan(examples)
        return self._batches(examples, plan, 0, plan.steps_per_epoch, 0, augment=False)

    def eval_plan(self, examples: Examples) -> BatchPlan:
        """Which examples make up the batches of `eval_batches`."""
        size = self.exp.train.eval_batch_size or self.exp.train.batch_size
        lengths = self.transform.lengths(examples)
        return BatchPlan(
            len(examples), size, seed=0, shuffle=False, lengths=lengths, buckets=inputs.buckets(self.exp.data)
        )

    def abstract_batch(self, batch_size: int, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of training inputs, the longest that the config allows unless `length` says otherwise."""
        examples, longest = self.sets["train"], self.exp.data.max_length
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

    def _batches(self, examples: Examples, plan: BatchPlan, start: int, stop: int, seed: int, augment: bool):
        transform = self.transform
        for split, store in self.stores.items():
            positions = examples.within(self.sets[split])
            if positions is not None:
                examples = examples.instead(lambda index, at=positions: {"position": at[index]})
                transform = StoredRows(store)
                break
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

    @property
    def _dtype(self):
        return jnp.bfloat16 if self.exp.model.dtype == "bfloat16" else None

    def shardings(self) -> dict[str, Any]:
        """Of everything that moves, in the form of `State.moving`."""
        _, params = chain.split(self.model)
        by_path = sharding.param_shardings(params, self.mesh, self.checkpoint.family.SHARDING)
        ours = {path: params[path] for path in self.plan.trained}
        trained = {path: by_path[path] for path in self.plan.trained}
        return {
            "step": sharding.replicated(self.mesh),
            "trained": trained,
            **({"ema": trained} if self.exp.train.ema else {}),
            "stats": {path: by_path[path] for path in self.plan.moving},
            "opt_state": sharding.opt_state_shardings(self.tx, ours, by_path, self.mesh),
        }

    def to_pretrained(self, state: State) -> Pretrained:
        """The adapted network: callable, and `save(folder)` writes the published layout, of `merge()` if the plan has
        adapters."""
        _, loaded = self.init_with_receipt()
        # What was initialised is the state's too, frozen or not: another version of JAX may draw other numbers.
        ours = (*self.plan.trained, *self.plan.moving, *loaded.receipt.fresh)
        base = {**loaded.params, **{path: state.adapted[path] for path in ours}}
        model = loading.abstract(self.checkpoint, self.add_head)
        chain.merge_into(model, base)
        published = {**self.checkpoint.published, **self.task.published()}
        published["tl_jax"] = {"task": self.exp.task.name, "options": dataclasses.asdict(self.task.config)}
        result = Pretrained(model, self.checkpoint, loaded, published, self.task.classes)
        if result.heads():
            published["architectures"] = result.heads()[:1]
        return result


def build(
    exp: config.Experiment,
    mesh: jax.sharding.Mesh | None = None,
    data: Mapping[str, Examples] | None = None,
    callbacks: Sequence[Any] = (),
    saved_split: Mapping[str, list[str]] | None = None,
    classes: Sequence[str] | None = None,
) -> Engine:
    """The pieces of a run: nothing is started, no weight is read, no flag is set.

    Args:
      mesh: over `exp.mesh` if given.
      data: examples by split, over `exp.data` if given.
      callbacks: `train.callbacks.Callback` objects.
      saved_split: record keys by split, to split exactly as an earlier run did.
      classes: of an earlier run; no data is then read, and the engine evaluates but does not train.

    Raises:
      UserError: whatever is wrong in the config, the data or the checkpoint's names and shapes.
    """
    config.validate(exp)
    told = config.DETERMINISTIC in os.environ.get("XLA_FLAGS", "")
    if exp.train.deterministic and jax.default_backend() == "gpu" and not told:
        raise UserError(
            "train.deterministic", "needs XLA to be told", f"set XLA_FLAGS={config.DETERMINISTIC} at the start"
        )
    mesh = meshes.build(exp.mesh) if mesh is None else mesh
    eval_size = exp.train.eval_batch_size or exp.train.batch_size
    meshes.check_batch(mesh, exp.train.batch_size // exp.train.accumulate, "train.batch_size (a portion of it)")
    meshes.check_batch(mesh, eval_size, "train.eval_batch_size")
    checkpoint = loading.checkpoint_of(exp.model)
    sets = {} if classes is not None else dict(data) if data is not None else read_sets(exp.data, saved_split)
    train = sets.get("train")
    if classes is None and not train:
        raise UserError("data", "has no training examples")
    tasks = plugins.find("tl_jax.tasks", exp.task.name, "task.name")
    options = config.parse_options(tasks.Config, _task_options(exp.task, checkpoint), "task.options")
    task = tasks.Task(options, tuple(train.classes if classes is None else classes), checkpoint.family.POOLS)
    for split, examples in sets.items():
        task.check_labels(examples.labels, examples.keys, f"data ({split})")
    if train:
        task.prepare(train.labels)
    if exp.train.metric is not None and exp.train.metric not in task.metrics:
        raise UserError("train.metric", f"is {exp.train.metric!r}, must be one of {', '.join(task.metrics)}")
    checkpoint = checkpoint.for_pool(task.pool)
    transform = inputs.transform(exp, checkpoint, train)
    sets = {split: task.windows(examples, transform) for split, examples in sets.items()}
    train = sets.get("train")

    model = loading.abstract(checkpoint, loading.adder(task, exp.plan, checkpoint))
    chains, params = chain.split(model)
    plan = resolve(exp.plan, chains, params, exp.optimizer.weight_decay, getattr(model, "reads", None))
    train_plan, steps = None, 1
    if train:
        lengths, seed = transform.lengths(train), exp.seed
        buckets = inputs.buckets(exp.data)
        drawn_by = inputs.sampled_classes(exp.data, train)
        train_plan = BatchPlan(
            len(train),
            exp.train.batch_size,
            seed=seed,
            shuffle=True,
            lengths=lengths,
            buckets=buckets,
            classes=drawn_by,
        )
        steps = exp.train.steps or max(1, round(exp.train.epochs * train_plan.steps_per_epoch))
    rate = schedule.build(exp.optimizer, steps)
    frozen = set(params) - set(plan.trained)
    tx = optimizer.build(exp.optimizer, rate, lr=plan.lr, decay=plan.decay, frozen=frozen)
    dtype = jnp.bfloat16 if exp.model.dtype == "bfloat16" else None
    objective = ChainObjective(model, chains, plan, task.training_loss, dtype)
    engine = Engine(
        exp, mesh, sets, transform, task, checkpoint, model, chains, plan, train_plan, steps, rate, tx, None, callbacks
    )
    step = Step(
        objective,
        tx,
        accumulate=exp.train.accumulate,
        schedule=rate,
        mix=remedies.mix(exp.train, task, checkpoint),
        anchor=remedies.anchor(exp, checkpoint, model, plan.trained) if train else None,
        ema=exp.train.ema,
        place=engine.place,
        out_shardings=engine.shardings(),
    )
    engine = dataclasses.replace(engine, step=step)
    if train:
        caching.Cache(engine).check()
    return engine


def read_sets(data: config.Data, saved_split: Mapping[str, list[str]] | None = None) -> dict[str, Examples]:
    """Examples by split, as the config says."""
    source = plugins.find("tl_jax.data.sources", data.source, "data.source")
    options = config.parse_options(source.Config, data.options, "data.options")
    return splits.split(source.read(data, options), data, saved_split)


def _task_options(task: config.Task, checkpoint: Checkpoint) -> dict[str, Any]:
    """Over those of the family's published head for this task, unless another feature is asked for."""
    published = next((options for name, options in checkpoint.family.HEADS.values() if name == task.name), {})
    pool = published.get("pool")
    return {**published, **task.options} if task.options.get("pool", pool) == pool else dict(task.options)
