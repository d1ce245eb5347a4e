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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tl_jax import caching, config, distilling, inputs, loading, quantizing, remedies, stacking
from tl_jax.core import chain, plugins
from tl_jax.core.barriers import compiler_options, inlined
from tl_jax.core.chain import EVAL, Chains
from tl_jax.core.errors import UserError
from tl_jax.core.stacks import Stacks
from tl_jax.data import splits
from tl_jax.data.batches import BatchPlan
from tl_jax.data.examples import Examples
from tl_jax.feed import Feed
from tl_jax.parallel import mesh as meshes
from tl_jax.parallel import sharding
from tl_jax.plan import cut, phases
from tl_jax.plan.phases import Stretch
from tl_jax.plan.resolve import Resolved, resolve
from tl_jax.pretrained import Checkpoint, Loaded, Pretrained
from tl_jax.train import optimizer, schedule
from tl_jax.train.objective import ChainObjective
from tl_jax.train.state import State
from tl_jax.train.step import Step, initial_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine(Feed):
    """The pieces of a run: its batches, which come from `Feed`, and what is made of them.

    Attributes:
      task: the head, loss and metrics.
      checkpoint: the published network it starts from.
      model: the network, abstract, head included.
      chains: its stages.
      stretches: the run's phases in full; mostly there is one.
      forward: the jitted evaluation, whatever the phase.
      number: of the phase that all that follows here is for; `phase` gives the engines of the others.
      schedule, tx: the learning rate by step, and the optimizer over trained parameters.
      step: the training step; `train_step` and `step_fn` are it, jitted and not.
      callbacks: told of what happens in `runs.run`.
      teacher: whose answers are learnt too, if anybody's.
      quantized: the frozen leaves that are kept in few bits, if any.
      stacks: which leaves the states of this phase hold as one; see `train.scan`.
    """

    task: Any
    checkpoint: Checkpoint
    model: chain.Backbone
    chains: Chains
    stretches: tuple[Stretch, ...]
    forward: Callable[..., dict[str, jax.Array]]
    callbacks: Sequence[Any] = ()
    number: int = 0
    schedule: optax.Schedule | None = None
    tx: optax.GradientTransformation | None = None
    step: Step | None = None
    teacher: distilling.Teacher | None = None
    quantized: quantizing.Chosen | None = None
    stacks: Stacks = Stacks({})

    def phase(self, number: int) -> "Engine":
        """The pieces of a phase of the same run."""
        stretch = self.stretches[number]
        plan, exp = stretch.plan, self.exp
        training = bool(self.sets.get("train"))
        anchor = remedies.anchor(exp, self.checkpoint, self.model, plan.trained) if training else None
        chains = stacking.mark(self, stretch, anchor)
        stacks = Stacks.of(chains)
        if anchor is not None:
            anchor = dataclasses.replace(anchor, loaded=stacks.paths(anchor.loaded), fresh=stacks.paths(anchor.fresh))
        changes = {"number": number, "step": None, "stores": {}, "stacks": stacks}
        if chains != self.chains:
            forward = _forward(self.model, chains, self.task, exp, self.mesh)
            changes |= {"chains": chains, "forward": forward}
        other = dataclasses.replace(self, **changes)
        tx, rate = other.optimizer_of(stretch.optimizer.learning_rate, plan.decay)
        other = dataclasses.replace(other, tx=tx, schedule=rate)
        loss_of, teacher = self.task.training_loss, self.teacher if training else None
        if teacher is not None:
            loss_of = teacher.lesson.around(loss_of)
        step = Step(
            ChainObjective(self.model, chains, plan, loss_of, _compute_dtype(exp)),
            tx,
            accumulate=exp.train.accumulate,
            schedule=rate,
            mix=remedies.mix(exp.train, self.task, self.checkpoint),
            anchor=anchor,
            ema=exp.train.ema,
            teacher=teacher and teacher.forward,
            place=other.place,
            spread=functools.partial(sharding.spread_batch, mesh=self.mesh),
            out_shardings=other.shardings(),
        )
        return dataclasses.replace(other, step=step)

    def optimizer_of(
        self, learning_rate: float | jax.Array, decay: Mapping[str, float | jax.Array]
    ) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The optimizer of this phase and its schedule with this peak and these decays by path, traced ones too."""
        stretch, stacks = self.stretches[self.number], self.stacks
        opt = dataclasses.replace(stretch.optimizer, learning_rate=learning_rate)
        whole = opt.span == "run"
        rate = schedule.build(opt, max(1, self.steps if whole else self.stop - self.start), 0 if whole else self.start)
        _, params = chain.split(self.model)
        frozen = set(stacks.paths(params)) - set(stacks.paths(self.plan.trained))
        by_path = {"lr": stacks.values(self.plan.lr), "decay": stacks.values(decay)}
        return optimizer.build(opt, rate, **by_path, since=stacks.values(stretch.since), frozen=frozen), rate

    @property
    def plan(self) -> Resolved:
        """What happens to every parameter in this phase."""
        return self.stretches[self.number].plan

    @property
    def start(self) -> int:
        """The first update of this phase."""
        return self.stretches[self.number].start

    @property
    def stop(self) -> int:
        """The first update that this phase no longer makes."""
        return self.stretches[self.number].stop

    @property
    def steps(self) -> int:
        """Updates in the whole run; `steps_per_epoch` of them see as many training examples as there are."""
        return self.stretches[-1].stop

    @property
    def last(self) -> bool:
        """Whether no phase comes after this one."""
        return self.number + 1 == len(self.stretches)

    @property
    def changing(self) -> tuple[str, ...]:
        """Paths of all that training has moved up to the end of this phase, in the model's order."""
        plans = [stretch.plan for stretch in self.stretches[: self.number + 1]]
        moved = {path for plan in plans for path in (*plan.trained, *plan.moving)}
        return tuple(path for path in chain.split(self.model)[1] if path in moved)

    @property
    def add_head(self):
        """What puts the task's stages and the plan's adapters on a network."""
        return distilling.adder(loading.adder(self.task, self.exp.plan, self.checkpoint), self.teacher)

    def init(self) -> State:
        """The state at step 0: weights read from the file, a fresh head, empty optimizer slots."""
        return self.init_with_receipt()[0]

    def init_with_receipt(self) -> tuple[State, Loaded]:
        """The state at step 0, and what loading did."""
        loaded = self._load(None if self.quantized is None else self.quantized.keep)
        if self.step.teacher is None:
            return self.state_of(loaded.params), loaded
        teacher = self.teacher.load(self.mesh)
        receipt = dataclasses.replace(loaded.receipt, teacher=teacher.receipt.digest)
        return self.state_of(loaded.params, teacher.params), dataclasses.replace(loaded, receipt=receipt)

    def _load(self, keep=None) -> Loaded:
        return loading.load(
            loading.read_from(self.exp.model, self.checkpoint),
            self.model,
            self.add_head,
            fresh=self.exp.model.fresh,
            key=jax.random.fold_in(jax.random.key(self.exp.seed), 0),
            dtype="float32",
            mesh=self.mesh,
            keep=keep,
        )

    def state_of(self, params: chain.Params, teacher: chain.Params | None = None) -> State:
        """A state at step 0 with these leaves, one a path, and with these of the teacher."""
        shardings = self.shardings()["opt_state"]

        def first():
            return jnp.zeros((), jnp.int32), jax.random.fold_in(jax.random.key(self.exp.seed), 1)

        # Made where they lie: `device_put` reaches no device of another process.
        step, key = jax.jit(first, out_shardings=sharding.replicated(self.mesh))()
        groups = (self.stacks.paths(paths) for paths in (self.plan.trained, self.plan.moving))
        kept = self.step.anchor, bool(self.step.ema)
        state = initial_state(self.stacks.stacked(params), *groups, self.tx, key, shardings, *kept)
        anchor = state.anchor
        if anchor and self.number:
            # What an earlier phase has moved is held where it was loaded should it train again.
            held = remedies.anchor(self.exp, self.checkpoint, self.model, self.changing).loaded
            known = self.stacks.unstacked(anchor)
            anchor |= {path: jnp.copy(params[path]) for path in held if path not in known}
        return dataclasses.replace(state, step=step, anchor=anchor, teacher=teacher or {})

    def enter(self, state: State) -> State:
        """The state at the start of this phase, from that at the end of the one before.

        What goes on training keeps its optimizer slots and its average, what begins starts with empty slots, what no
        longer trains is frozen as it is.
        """
        before = self.phase(self.number - 1).stacks.unstacked
        begun, single = self.state_of(before(state.params), state.teacher), self.stacks.unstacked
        opt_state = optimizer.carried(before(state.opt_state), single(begun.opt_state))
        averages, held = before(state.ema), before(state.anchor)
        ema = {path: averages.get(path, leaf) for path, leaf in single(begun.ema).items()}
        # What was held from an earlier phase on is held where it was loaded.
        anchor = {**single(begun.anchor), **held}
        kept = {"opt_state": opt_state, "ema": ema, "anchor": anchor}
        kept = {name: self.stacks.like(tree, getattr(begun, name)) for name, tree in kept.items()}
        kept["anchor"] |= {path: leaf for path, leaf in held.items() if path not in single(begun.anchor)}
        return dataclasses.replace(begun, step=state.step, key=state.key, **kept)

    def train_step(self, state: State, batch: Mapping[str, Any]) -> tuple[State, dict[str, jax.Array]]:
        """One jitted, donated update; `batch` holds the global batch, on the host or on the devices."""
        return self.step(state, batch)

    def step_fn(self, state: State, batch: Mapping[str, Any]) -> tuple[State, dict[str, jax.Array]]:
        """The same update unjitted, for an outer `jit`, `scan` or `vmap`."""
        return self.step.fn(state, batch)

    def eval_step(self, state: State, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The task's outputs, `weight`, `id` where the batch has it and, with labels, `loss` float32[B]: no dropout,
        running statistics."""
        batch = self.place(batch)
        if "weight" not in batch:
            batch["weight"] = jnp.ones(len(batch[self.checkpoint.family.INPUTS[0]]), jnp.float32)
        return self.forward(state.adapted, batch, self.cut_of(batch))

    def cut_of(self, batch: Mapping[str, Any]) -> tuple[int, ...]:
        """By chain, how many stages a batch has behind it: those below the cut where it brings what crosses it."""
        return tuple(self.plan.cut.values()) if "crossing" in batch else (0,) * len(self.chains)

    def shardings(self) -> dict[str, Any]:
        """Of everything that moves, in the form of `State.moving`."""
        held = self.abstract_params
        moves = self.stacks.paths((*self.plan.trained, *self.plan.moving))
        by_path = {path: held[path].sharding for path in moves}
        ours = {path: held[path] for path in self.stacks.paths(self.plan.trained)}
        trained = {path: by_path[path] for path in ours}
        return {
            "step": sharding.replicated(self.mesh),
            "trained": trained,
            **({"ema": trained} if self.exp.train.ema else {}),
            "stats": {path: by_path[path] for path in self.stacks.paths(self.plan.moving)},
            "opt_state": sharding.opt_state_shardings(self.tx, ours, by_path, self.mesh),
        }

    @functools.cached_property
    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """All leaves of the model with their shardings, as states hold them."""
        _, params = chain.split(self.model)
        places = sharding.param_shardings(params, self.mesh, self.checkpoint.family.SHARDING)
        params = {path: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=places[path]) for path, p in params.items()}
        return self.stacks.stacked(params if self.quantized is None else self.quantized.abstract(params))

    def to_pretrained(self, state: State) -> Pretrained:
        """The adapted network: callable, and `save(folder)` writes the published layout, of `merge()` if the plan has
        adapters. What was frozen is as the file has it, though it was quantised in training."""
        loaded = self._load()
        # What was initialised is the state's too, frozen or not: another version of JAX may draw other numbers.
        ours = (*self.changing, *loaded.receipt.fresh)
        adapted = self.stacks.unstacked(state.adapted)
        base = {**loaded.params, **{path: adapted[path] for path in ours}}
        model = loading.abstract(self.checkpoint, loading.adder(self.task, self.exp.plan, self.checkpoint))
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
    transform: Any = None,
) -> Engine:
    """The pieces of a run: nothing is started, no weight is read, no flag is set.

    Args:
      mesh: over `exp.mesh` if given.
      data: examples by split, over `exp.data` if given.
      callbacks: `train.callbacks.Callback` objects.
      saved_split: record keys by split, to split exactly as an earlier run did.
      classes: of an earlier run; no data is then read, and the engine evaluates but does not train.
      transform: from a raw record to arrays, over what the checkpoint's files say; see `data.texts` for what it has.

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
    transform = inputs.transform(exp, checkpoint, train) if transform is None else transform
    sets = {split: task.windows(examples, transform) for split, examples in sets.items()}
    train = sets.get("train")

    teacher = distilling.open_teacher(exp, task)
    model = loading.abstract(checkpoint, distilling.adder(loading.adder(task, exp.plan, checkpoint), teacher))
    task.arrange(model, mesh.shape["data"] * mesh.shape["fsdp"])
    chains, params = chain.split(model)
    reads, spared = getattr(model, "reads", None), getattr(checkpoint.family, "NO_DECAY", ())
    train_plan = packed = buckets = None
    if train:
        lengths_N = transform.lengths(train)
        # What is evaluated is padded to the lengths of training, which are compiled anyway, unless these are of rows.
        buckets = inputs.buckets(exp.data, transform, lengths_N)
        packed = inputs.packed(exp, checkpoint, train)
        train_plan = BatchPlan(
            len(train if packed is None else packed),
            exp.train.batch_size,
            seed=exp.seed,
            shuffle=True,
            lengths=lengths_N if packed is None else transform.lengths(packed),
            buckets=buckets if packed is None else (exp.data.max_length,),
            classes=inputs.sampled_classes(exp.data, train),
        )
    stats = {path for stages in chains.values() for stage in stages for path in stage.stats()}
    names = [stage.name for stages in chains.values() for stage in stages]
    norms = sorted({path.rpartition("/")[0] for path in stats})
    # What hides spans is the first stage, so that nothing lies below the cut.
    drawing = {"dropout": "all"} if inputs.hides_spans(exp, checkpoint) else {}
    # What fits is known by compiling; see `remat`.
    again = "none" if exp.train.remat == "auto" else exp.train.remat
    written = phases.write(exp, names, [path for path in params if path not in stats], norms)
    stretches = phases.resolve(
        written,
        exp.optimizer,
        train_plan and train_plan.steps_per_epoch,
        lambda plan, decay: resolve(dataclasses.replace(plan, **drawing), chains, params, decay, reads, spared, again),
    )
    forward = _forward(model, chains, task, exp, mesh)
    moved = {path for each in stretches for path in (*each.plan.trained, *each.plan.moving)}
    chosen = quantizing.choose(exp, checkpoint, model, moved)
    engine = Engine(
        exp=exp,
        mesh=mesh,
        sets=sets,
        transform=transform,
        train_plan=train_plan,
        packed=packed,
        buckets=buckets,
        task=task,
        checkpoint=checkpoint,
        model=model,
        chains=chains,
        stretches=stretches,
        forward=forward,
        callbacks=callbacks,
        teacher=teacher,
        quantized=chosen,
    ).phase(0)
    if train and teacher is not None:
        teacher.check(exp, checkpoint, engine.abstract_batch(1))
    if train and exp.plan.prompt is not None:
        inputs.check_room(model, engine.abstract_batch(1))
    if train:
        caching.check([engine.phase(number) for number in range(len(stretches))])
    return engine


def _forward(model, chains, task, exp, mesh):
    """(params, batch, cut) -> what `Engine.eval_step` returns; `cut` is that of what the batch brings, by chain."""

    def forward(params, batch, cut_at):
        below = dict(zip(chains, cut_at, strict=True))
        crossing = batch.get("crossing", {})
        outputs, _ = cut.run_suffix(
            model, chains, below, crossing, params, batch, lambda _: EVAL, dtype=_compute_dtype(exp)
        )
        found = dict(outputs)
        if "label" in batch:
            losses, metrics = task.loss(outputs, batch)
            found |= {**metrics, "loss": losses}
        # Copied to every device: the host then reads it whole, on any number of processes.
        kept = {name: found[name] for name in (*task.outputs, "loss") if name in found}
        kept |= {name: batch[name] for name in ("weight", "id") if name in batch}
        return jax.lax.with_sharding_constraint(kept, sharding.replicated(mesh))

    return inlined(jax.jit(forward, static_argnums=2, compiler_options=compiler_options()))


def _compute_dtype(exp: config.Experiment):
    return jnp.bfloat16 if exp.model.dtype == "bfloat16" else None


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
