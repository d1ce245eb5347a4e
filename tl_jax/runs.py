# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A whole run in a folder: start, go on, finish, and come back to it.

    summary = run(exp, workdir="runs/x")
    pretrained = load_run("runs/x")

The same folder goes on by itself from its last good checkpoint; a finished run is not run again.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from tl_jax import caching, closing, config, costs, evaluation, reading, remat, workdirs
from tl_jax.core import chain
from tl_jax.core import folder as folders
from tl_jax.core.errors import UserError
from tl_jax.data import splits
from tl_jax.data.examples import Examples
from tl_jax.engine import Engine, build
from tl_jax.parallel import mesh as meshes
from tl_jax.plan.resolve import count
from tl_jax.pretrained import Loaded, Pretrained
from tl_jax.report import plan as plan_report
from tl_jax.report import profile
from tl_jax.report.console import Console
from tl_jax.resident import Resident
from tl_jax.train import loop
from tl_jax.train.callbacks import Callback
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.state import State
from tl_jax.train.stopping import StopRequest


def run(
    exp: config.Experiment,
    workdir: str | epath.Path,
    *,
    data: Mapping[str, Examples] | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Train, evaluate and write everything down, as `launch.py` does.

    Args:
      workdir: of this run; one that was interrupted goes on, one that is finished returns its summary.
      data: examples by split, over `exp.data` if given.
      quiet: print nothing.

    Returns:
      The content of `summary.json`.

    Raises:
      UserError: anything wrong in the config, the data, the weights, or a workdir of another config.
      Stopped: SIGINT or SIGTERM came; the run is saved and goes on when called again.
    """
    # An Experiment made in Python has its types checked here, and 1 epoch becomes the 1.0 that config.json holds.
    exp = config.from_dict(config.to_dict(exp))
    config.validate(exp)
    with workdirs.held(epath.Path(workdir)) as folder:
        workdirs.check_same(exp, folder)
        if exp.pretrain is not None:
            run(exp.pretrain, folder / "pretrain", quiet=quiet)
        started = _with_source(exp, folder)
        summary = folders.read_json(folder / "summary.json")
        if summary is None:
            summary = _train(exp, started, folder, data, callbacks, quiet)
        if exp.baseline and "baseline" not in summary:
            summary["baseline"] = run(baseline_of(started), folder / "baseline", data=data, quiet=quiet)
            workdirs.write(folder / "summary.json", summary)
    return summary


def baseline_of(exp: config.Experiment) -> config.Experiment:
    """The run that `exp` is compared with."""
    plain = dataclasses.replace(exp, name=f"{exp.name}, baseline", baseline={}, profile=None)
    return config.override(plain, exp.baseline)


def load_run(workdir: str | epath.Path) -> Pretrained:
    """The adapted network of a run, from its best checkpoint (or its last, as the config says).

    Raises:
      UserError: no run there, no checkpoint yet, or a base that is not the one the run started from.
    """
    engine, state = open_run(workdir)
    return engine.to_pretrained(state)


def open_run(workdir: str | epath.Path, with_data: bool = False) -> tuple[Engine, State]:
    """The engine and the adapted state of a run, ready for `eval_step`, on the run's mesh or else on one device.

    Args:
      with_data: read the run's data and split it as the run did.
    """
    folder = epath.Path(workdir)
    kept = folders.read_json(folder / "splits.json")
    if kept is None or not (folder / "config.json").exists():
        raise UserError(str(workdir), "holds no run", "train one there first")
    exp = config.from_dict(folders.read_json(folder / "config.json"), str(folder / "config.json"))
    if not exp.distill.features:
        # A teacher is asked in training only; but where features are compared, its width is that of a layer.
        exp = dataclasses.replace(exp, distill=config.Distill())
    # What trains no more is held as the checkpoint has it, and looked at path by path.
    exp = dataclasses.replace(exp, train=dataclasses.replace(exp.train, scan="off"))
    exp = _with_source(exp, folder)
    mesh = _mesh_at_hand(exp)
    if with_data:
        engine = build(exp, mesh, saved_split=kept["splits"])
    else:
        engine = build(exp, mesh, classes=kept["classes"])
    state, loaded = engine.init_with_receipt()
    workdirs.check_base(folder, loaded)
    with _checkpoints(engine, folder) as checkpoints:
        step = checkpoints.best() if exp.train.restore_best else None
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise UserError(str(workdir), "has no checkpoint yet", "let it train until the first one")
        engine = engine.phase(_phase_of(checkpoints, step))
        if engine.number:
            state = engine.state_of(loaded.params)
        state, _ = _restored(engine, state, loaded, checkpoints, step)
    return engine, state


def _phase_of(checkpoints: Checkpoints, step: int) -> int:
    """The phase that a saved step belongs to."""
    return loop.Progress(**checkpoints.progress(step)).phase


def _mesh_at_hand(exp: config.Experiment) -> jax.sharding.Mesh:
    """The run's own mesh where the devices here allow it, else one device: a run is used on other machines too."""
    size = exp.train.batch_size
    try:
        mesh = meshes.build(exp.mesh)
        meshes.check_batch(mesh, size // exp.train.accumulate, "train.batch_size")
        meshes.check_batch(mesh, exp.train.eval_batch_size or size, "train.eval_batch_size")
    except UserError:
        if jax.process_count() > 1:
            raise
        return meshes.build(config.Mesh(), jax.devices()[:1])
    return mesh


def _train(exp, started, folder, data, callbacks, quiet) -> dict[str, Any]:
    console = Console(folder, exp.train.batch_size, quiet)
    main = jax.process_index() == 0
    say = console.say if main else lambda text: None
    callbacks = [*([console] if main else []), *callbacks]
    say(f"reading {started.data.source} data")
    kept = folders.read_json(folder / "splits.json")
    engine = build(
        started, data=data, callbacks=callbacks, saved_split=kept and data is None and kept["splits"] or None
    )
    profile.span_of(exp.profile, engine.steps)
    engine, told = _settled(engine, folder)
    say(told) if told else None
    wasted = engine.padding
    say(str(wasted)) if wasted is not None else None
    say("loading weights")
    state, loaded = engine.init_with_receipt()
    workdirs.check_base(folder, loaded)
    workdirs.write(folder / "config.json", config.to_dict(exp))
    if told and not (folder / "remat.json").exists():
        workdirs.write(folder / "remat.json", {"remat": engine.exp.train.remat, "why": told})
    workdirs.write(folder / "receipt.json", loaded.receipt.to_dict())
    workdirs.write(folder / "plan.json", plan_report.to_dict(engine.stretches))
    workdirs.write(folder / "splits.json", {"classes": list(engine.task.classes), "splits": splits.keys(engine.sets)})

    with _checkpoints(engine, folder) as checkpoints, StopRequest() as stop:
        progress = loop.Progress()
        latest = checkpoints.latest()
        if latest is not None:
            engine = engine.phase(_phase_of(checkpoints, latest))
            if engine.number:
                state = engine.state_of(loaded.params, state.teacher)
            state, kept_progress = _restored(engine, state, loaded, checkpoints, latest)
            progress = loop.Progress(**kept_progress)
        # What is held stacked would stay in memory twice.
        loaded = dataclasses.replace(loaded, params={})
        while True:
            if int(state.step) < engine.stop:
                say(_title(engine)) if len(engine.stretches) > 1 else None
                progress.seconds += _cached(engine, state, folder / "cache", say)
            state, progress = _fit(engine, state, progress, loaded, checkpoints, folder, stop)
            if engine.last or progress.stopped_early:
                break
            engine = engine.phase(engine.number + 1)
            state = engine.enter(state)
            progress = dataclasses.replace(progress, phase=engine.number, since_best=0)
        told = reading.advice(engine, progress.waited, progress.stepping)
        say(told) if told else None
        steps_done = int(state.step)
        best = checkpoints.best() if exp.train.restore_best and "validation" in engine.sets else None
        if best is not None and best != steps_done:
            number = _phase_of(checkpoints, best)
            if number != engine.number:
                # What trains now and did not train then is as the base has it.
                engine = engine.phase(number)
                state, loaded = engine.init_with_receipt()
            state, _ = _restored(engine, state, loaded, checkpoints, best)
    say("testing")
    summary = closing.summary(exp, engine, state, progress, steps_done, best)
    workdirs.write(folder / "summary.json", summary)
    if main and (folder / "cache").exists():
        # It is there to go on after a stop; what is to be shared has a folder of its own.
        (folder / "cache").rmtree()
    return summary


def _settled(engine: Engine, folder: epath.Path) -> tuple[Engine, str]:
    """With what fits in place of `train.remat=auto`, or what the run began with, and a line that says so."""
    kept = folders.read_json(folder / "remat.json") if engine.exp.train.remat == "auto" else None
    if kept is None:
        return remat.settled(engine, costs.peak, meshes.memory_limit(engine.mesh))
    return remat.under(engine, kept["remat"]), f"remat: {kept['remat']}, as the run began"


def _fit(engine: Engine, state: State, progress: loop.Progress, loaded: Loaded, checkpoints: Checkpoints, folder, stop):
    """One phase, from where `state` is to its end."""
    metric, larger = closing.chosen_metric(engine)
    validation, train, per_epoch = engine.sets.get("validation"), engine.exp.train, engine.steps_per_epoch

    def evaluate(state):
        found = evaluation.measure(engine, state, validation, resident=judged).metrics
        return found[metric], found

    pace = loop.Pace(
        total=engine.steps,
        stop=engine.stop,
        log_every=train.log_every,
        eval_every=train.eval_every or per_epoch,
        save_every=train.save_every or train.eval_every or per_epoch,
        patience=train.patience if engine.last else None,
        larger_is_better=larger,
    )
    span = profile.span_of(engine.exp.profile, engine.steps)
    resident = Resident(engine)
    reason = resident.why_not()
    if train.resident == "on" and reason is not None:
        raise UserError("train.resident", f"is on, but {reason}", "set train.resident=auto")
    judged = None
    if reason is None:
        resident.load()
        judged = resident.beside("validation") if validation is not None else None
        make, batches = resident.step, functools.partial(resident.updates, pause=pace.pause)
    else:
        make, batches = engine.train_step, lambda *steps: ((1, batch) for batch in engine.train_batches(*steps))
    with profile.traced(make, span, str(folder / "profile"), int(state.step)) as step:
        return loop.fit(
            state,
            progress,
            step=step,
            batches=batches,
            batch_ids=lambda number: engine.train_plan.batch(number)[0],
            evaluate=evaluate if validation is not None else None,
            checkpoints=checkpoints,
            saved=lambda state: checkpointed(engine, state, loaded),
            pace=pace,
            callbacks=engine.callbacks,
            stop=stop,
        )


def _title(engine: Engine) -> str:
    _, params = chain.split(engine.model)
    trained = count(params, engine.plan.trained)
    of = f"phase {engine.number + 1} of {len(engine.stretches)}"
    return f"{of}, steps {engine.start + 1} to {engine.stop}: {trained:,} parameters train"


def _cached(engine: Engine, state: State, folder: epath.Path, say: Callable[[str], None]) -> float:
    """Keep what crosses the cut where that can be done, or say why not; the seconds that it took."""
    cache, began = caching.Cache(engine, folder), time.perf_counter()
    reason = cache.why_not(state)
    if reason is None:
        cache.fill(state, say)
    elif cache.pays:
        say(f"the stages below the cut run in every epoch: {reason}")
    return time.perf_counter() - began


def _checkpoints(engine: Engine, folder: epath.Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", keep=1, metric_mode="max" if closing.chosen_metric(engine)[1] else "min")


def checkpointed(engine: Engine, state: State, loaded: Loaded) -> dict[str, Any]:
    """What differs from the base file: all that moves, and frozen leaves that were initialised or that an earlier phase
    has moved."""
    differ = dict.fromkeys((*loaded.receipt.fresh, *engine.changing))
    frozen = engine.stacks.unstacked(_frozen_at(engine, state, differ))
    moving = engine.stacks.unstacked(state.moving)
    return {**moving, "frozen": {path: frozen[path] for path in differ if path in frozen}}


def _frozen_at(engine: Engine, state: State, paths) -> dict[str, Any]:
    """The frozen leaves at these paths, as they are held."""
    return {path: state.frozen[path] for path in engine.stacks.paths(paths) if path in state.frozen}


def _restored(engine, state: State, loaded: Loaded, checkpoints: Checkpoints, step: int) -> tuple[State, dict]:
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        checkpointed(engine, state, loaded),
    )
    tree, progress = checkpoints.restore(step, abstract)
    restored = tree.pop("frozen")
    held = _frozen_at(engine, state, restored)
    frozen = engine.stacks.like({**engine.stacks.unstacked(held), **restored}, held)
    moving = engine.stacks.like(tree, state.moving)
    return dataclasses.replace(state, **moving, frozen={**state.frozen, **frozen}), progress


def _with_source(exp: config.Experiment, folder: epath.Path) -> config.Experiment:
    """With `model.pretrained` and `distill.teacher` as folders of published files, where they are results of runs."""
    name = _files_of(exp.model.pretrained) if exp.pretrain is None else _published(folder / "pretrain")
    model = dataclasses.replace(exp.model, pretrained=name)
    distill = dataclasses.replace(exp.distill, teacher=_files_of(exp.distill.teacher))
    return dataclasses.replace(exp, model=model, distill=distill, pretrain=None)


def _files_of(name: str | None) -> str | None:
    """The same, or the folder of published files where it is that of a run."""
    return _published(epath.Path(name)) if name is not None and (epath.Path(name) / "splits.json").exists() else name


def _published(run_folder: epath.Path) -> str:
    """The folder of published files in a run's folder, written when it is first asked for."""
    model = run_folder / "model"
    # No process can find it there while another still asks: loading takes all of them.
    if not (model / "config.json").exists():
        pretrained, temporary = load_run(run_folder).merge(), run_folder / "model.tmp"
        if jax.process_index() == 0:
            temporary.rmtree(missing_ok=True)
        pretrained.save(temporary)
        if jax.process_index() == 0:
            temporary.rename(model)
        multihost_utils.sync_global_devices("published files written")
    return str(model)
