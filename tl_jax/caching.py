# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a run keeps what crosses its cut, where, and the keeping.

    cache = Cache(engine, workdir / "cache")
    if cache.why_not(state) is None:
        cache.fill(state)          # from here on, engine's batches bring what crosses the cut instead of inputs

A frozen prefix gives the same features in every epoch. They are computed once for the training and the validation
examples, by a program of their own in index order, so an interrupted run that computes them again gets the same bits.
In files, a folder named after all that decides these bits, they serve every run that would compute the same.
"""

import collections
import contextlib
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from tl_jax import provenance
from tl_jax.core.barriers import compiler_options
from tl_jax.core.chain import EVAL
from tl_jax.core.errors import UserError
from tl_jax.data.fingerprint import fingerprint
from tl_jax.parallel import sharding
from tl_jax.plan import cut
from tl_jax.train import mapped
from tl_jax.train.activations import Activations, used

# Of the machine's memory; what takes more goes to files.
_SHARE = 0.25
# Of what the disk has left.
_DISK_SHARE = 0.9
_SPLITS = ("train", "validation")
# Letters that processes tell each other at a time.
_LINE = 256


def check(engines: Sequence[Any]) -> None:
    """Raise UserError where `train.cache` or `train.cache_views` asks for what no phase of a run can do."""
    train, caches = engines[0].exp.train, [Cache(engine) for engine in engines]
    if train.cache == "on":
        reasons = [cache.why_not() for cache in caches]
    elif train.cache == "disk" or train.cache_views is not None:
        # Room is looked for when the folder is known, which may be the run's own.
        reasons = [cache.against() for cache in caches]
    else:
        return
    if None not in reasons and train.cache == "auto":
        raise UserError("train.cache_views", f"is {train.cache_views}, but {reasons[-1]}", "leave it out")
    if None not in reasons:
        raise UserError("train.cache", f"is {train.cache}, but {reasons[-1]}", "set train.cache=auto")


class Cache:
    """The kept activations of a run, before and after they are computed.

    Args:
      folder: for files where `train.cache_dir` names none; None for memory alone.
    """

    def __init__(self, engine, folder: str | os.PathLike | None = None):
        self._engine = engine
        asked = engine.exp.train.cache_dir or folder
        self._folder = None if asked is None else os.fspath(asked)
        self._located: dict[str, tuple[pathlib.Path, dict[str, Any]]] | None = None

    @property
    def pays(self) -> bool:
        """Some block lies below a cut."""
        engine = self._engine
        below = [stage.name for name, stages in engine.chains.items() for stage in stages[: engine.plan.cut[name]]]
        return any(re.fullmatch(r"blocks/\d+", name) for name in below)

    def why_not(self, state=None) -> str | None:
        """What speaks against keeping them; None where nothing does.

        Args:
          state: with which they would be computed. Without one nothing is known of files that are there already, and
            no room is looked for.

        Raises:
          UserError: there is no room, and `train.cache=disk` or `train.cache_views` leave no other way.
        """
        return self.against() or self._no_room(state)

    def against(self) -> str | None:
        """What speaks against keeping them anywhere; None where nothing does."""
        engine = self._engine
        views = engine.exp.train.cache_views
        if engine.exp.train.cache == "off":
            return "train.cache is off"
        if not self.pays:
            return "no block lies below the cut"
        if not all(engine.plan.cut.values()):
            return "a chain of the network begins above the cut"
        if engine.exp.data.augment and views is None:
            return "data.augment changes the examples from epoch to epoch"
        if engine.step.teacher is not None:
            return "distill.teacher reads the inputs in every step"
        if engine.step.mix is not None:
            return "train.mixup or train.cutmix changes the images in every step"
        if engine.stop - engine.start <= engine.steps_per_epoch * (views or 1) and engine.exp.data.sampler == "shuffle":
            return "no example is seen twice" if views is None else "no view of an example is seen twice"
        if jax.tree.leaves([carry.shared for carry in self._kept.values()]):
            return "tables that belong to no example cross the cut"
        return None

    def _no_room(self, state) -> str | None:
        train, limit, reason = self._engine.exp.train, _memory(), None
        if self.place == "memory":
            if self.nbytes > limit:
                reason = f"it would take {self.nbytes / 1e9:.1f} GB of memory, the limit is {limit / 1e9:.1f}"
        elif self._folder is None:
            reason = "train.cache_dir is not set"
        elif "://" in self._folder:
            reason = f"{self._folder} is no folder on a disk of this machine"
        elif state is not None:
            reason = self._agreed(self._full(state)) or None
        if reason is not None and state is not None and (train.cache == "disk" or train.cache_views is not None):
            raise UserError("train.cache_dir", reason, "name a folder with more room there")
        return reason

    def _full(self, state) -> str:
        """What the disk lacks for all that is not there yet; an empty text where it lacks nothing."""
        missing = [s for split, s in self._stores.items() if not mapped.finished(self._places(state)[split][0])]
        wanted, left = sum(store.nbytes for store in missing), _DISK_SHARE * mapped.free(pathlib.Path(self._folder))
        return f"{self._folder} has {left / 1e9:.1f} GB left for {wanted / 1e9:.1f}" if wanted > left else ""

    @functools.cached_property
    def place(self) -> Literal["memory", "disk"]:
        """Where they are kept."""
        train = self._engine.exp.train
        if train.cache == "auto" and self._folder is not None and (train.cache_dir or self.nbytes > _memory()):
            return "disk"
        return "disk" if train.cache == "disk" else "memory"

    @property
    def nbytes(self) -> int:
        """What the activations take in all."""
        return sum(store.nbytes for store in self._stores.values())

    def fill(self, state, say: Callable[[str], None] = lambda text: None) -> None:
        """Compute what crosses the cut for the training and the validation examples, into the engine's `stores`, or
        read it where it was computed before.

        Args:
          say: told in a line what is done.

        Raises:
          UserError: files cannot be written, or are not the same on all processes.
        """
        self._engine.stores.clear()
        if self.place == "memory":
            say(f"computing once what crosses the cut ({self.nbytes / 1e6:.1f} MB)")
        for split, store in self._stores.items():
            if self.place == "memory":
                store.fill(self._batches(split), functools.partial(self._prefix, state.frozen))
            else:
                self._through_files(split, store, state, say)
        self._engine.stores.update(self._stores)

    def _through_files(self, split: str, store: Activations, state, say) -> None:
        """From files, which process 0 writes where they are not there yet, and all processes read."""
        main, (folder, origin) = jax.process_index() == 0, self._places(state)[split]
        size, arrays = f"{store.nbytes / 1e6:.1f} MB for {split}", None
        with _written_to(folder), mapped.held(folder) if main else contextlib.nullcontext():
            if main:
                arrays = mapped.read(folder, store.arrays)
            if self._agreed("" if arrays is None else "whole"):
                say(f"reading what crosses the cut from {folder} ({size})")
            else:
                say(f"computing once what crosses the cut, into {folder} ({size})")
                prefix = functools.partial(self._prefix, state.frozen)
                if main:
                    arrays = mapped.create(folder, store.arrays)
                    store.fill(self._batches(split), prefix, arrays)
                    mapped.commit(folder, arrays, origin)
                else:
                    collections.deque(map(prefix, self._batches(split)), maxlen=0)
                multihost_utils.sync_global_devices("what crosses the cut is written")
                arrays = None
        arrays = mapped.read(folder, store.arrays) if arrays is None else arrays
        if arrays is None:
            raise UserError(str(folder), "is not the same on all processes", "give a train.cache_dir that they share")
        store.hold(arrays)

    def _batches(self, split: str) -> Iterator[dict[str, Any]]:
        engine, views = self._engine, self._stores[split].views
        return engine.view_batches(views) if views else engine.eval_batches(engine.batched[split])

    def _places(self, state) -> dict[str, tuple[pathlib.Path, dict[str, Any]]]:
        """By split, the folder of its files and what decides them."""
        if self._located is None:
            engine = self._engine
            below = [stage for name, stages in engine.chains.items() for stage in stages[: engine.plan.cut[name]]]
            paths = {path for stage in below for _, path, _ in stage.named()}
            weights = provenance.of_weights({path: state.frozen[path] for path in engine.stacks.paths(paths)})
            self._located = {}
            for split in self._stores:
                origin = {"weights": weights, **self._origin(split, state)}
                folder = pathlib.Path(self._folder) / self._agreed(provenance.digest(origin))
                self._located[split] = folder, origin
        return self._located

    def _origin(self, split: str, state) -> dict[str, Any]:
        """All that decides what crosses the cut for a split, but the weights."""
        engine, store = self._engine, self._stores[split]
        size = engine.exp.train.eval_batch_size or engine.exp.train.batch_size
        batches = [engine.abstract_batch(size, length, split) for length in dict.fromkeys(store.lengths)]
        return {
            **provenance.of_program(self._prefix.lower(state.frozen, batch).as_text() for batch in batches),
            "source": [engine.exp.data.source, repr(engine.exp.data.options)],
            "examples": fingerprint(engine.batched[split], engine.transform),
            "lengths": hashlib.sha256(repr(store.lengths).encode()).hexdigest(),
            "views": [store.views, engine.exp.seed] if store.views else [],
        }

    @functools.cached_property
    def _stores(self) -> dict[str, Activations]:
        """Empty ones, which know every example's padded length."""
        engine = self._engine

        @functools.cache
        def shapes(split, length):
            return jax.eval_shape(self._prefix, engine.abstract_params, engine.abstract_batch(1, length, split))[2]

        stores = {}
        for split in _SPLITS:
            if split in engine.sets:
                plan = engine.eval_plan(engine.batched[split])
                lengths: list[Any] = [None] * len(engine.batched[split])
                for step in range(plan.steps_per_epoch):
                    indices, weights, length = plan.batch(step)
                    for index in indices[weights > 0].tolist():
                        lengths[index] = length
                views = (engine.exp.train.cache_views or 0) if split == "train" else 0
                stores[split] = Activations(lengths * max(views, 1), functools.partial(shapes, split), views)
        return stores

    @functools.cached_property
    def _prefix(self):
        """The jitted (frozen, batch) -> (ids, weights, what crosses and is read), whole on every device and process."""
        # Asked here, as asking looks at the model, which no trace may do.
        engine, kept = self._engine, self._kept

        def run(frozen, batch):
            crossing = engine.step.objective.prefix(frozen, batch)
            crossing = jax.tree.map(
                lambda keep, leaf: None if keep is None else leaf, kept, crossing, is_leaf=lambda x: x is None
            )
            return jax.lax.with_sharding_constraint(
                (batch["id"], batch["weight"], crossing), sharding.replicated(engine.mesh)
            )

        return jax.jit(run, compiler_options=compiler_options())

    @functools.cached_property
    def _kept(self):
        """What crosses the cut, abstract, with None for what no stage above it reads."""
        engine = self._engine
        params, batch = engine.abstract_params, engine.abstract_batch(2)
        crossing = jax.eval_shape(engine.step.objective.prefix, params, batch)

        def above(arguments):
            crossing, params, batch = arguments
            outputs, _ = cut.run_suffix(
                engine.model, engine.chains, engine.plan.cut, crossing, params, batch, lambda _: EVAL
            )
            losses = engine.task.loss(outputs, batch), engine.task.training_loss(outputs, batch)
            return {name: outputs[name] for name in engine.task.outputs if name in outputs}, losses

        return used(above, (crossing, params, batch))[0]

    def _agreed(self, text: str) -> str:
        """What process 0 says, on all of them."""
        if jax.process_count() == 1:
            return text
        line = np.frombuffer(text.encode().ljust(_LINE)[:_LINE], np.uint8)
        return bytes(np.asarray(multihost_utils.broadcast_one_to_all(line))).decode().rstrip()


def _memory() -> float:
    """Bytes that may be taken of this machine's memory."""
    return _SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextlib.contextmanager
def _written_to(folder: pathlib.Path) -> Iterator[None]:
    """Tells what a disk refuses."""
    try:
        yield
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise UserError(str(folder), what, "give train.cache_dir a folder of yours with room") from error
