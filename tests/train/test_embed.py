# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A step over somebody else's module, loss and loop."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tl_jax
from tl_jax.config import Mesh, Plan
from tl_jax.core.errors import UserError
from tl_jax.parallel import mesh as meshes

_PLAN = Plan(train=("head/.*", "norm/.*"))


class Theirs(nnx.Module):
    """Not ours: BatchNorm twice, dropout with a random stream of its own, no stages."""

    def __init__(self, rate: float = 0.5):
        rngs = nnx.Rngs(params=0, dropout=1)
        self.body = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs))
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        """float[B, 4] -> float[B, 2]."""
        return self.head(self.dropout(self.norm(jnp.tanh(self.body(x)))))


def squared(model, batch):
    """Their loss: a mean, and a mean beside it."""
    found = model(batch["x"])
    return jnp.mean((found - batch["y"]) ** 2), {"size": jnp.abs(found).mean()}


def batches(count=5, rows=8):
    """Their data."""
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(rows, 4)), "y": rng.normal(size=(rows, 2))} for _ in range(count)]


def leaves(model):
    """Every leaf by path, keys of random streams as numbers."""
    state = nnx.to_flat_state(nnx.as_pure(nnx.state(model)))
    plain = ((path, jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for path, x in state)
    return {"/".join(map(str, path)): np.array(x) for path, x in plain}


def by_hand(tx, data):
    """The same training without us: frozen statistics used and kept, the others follow, dropout draws on."""
    model = Theirs()
    model.body.layers[1].use_running_average = True
    graphdef, trained, rest = nnx.split(model, lambda path, x: isinstance(x, nnx.Param) and path[0] != "body", ...)
    trained, rest = nnx.as_pure(trained), nnx.as_pure(rest)

    @jax.jit
    def step(trained, rest, opt_state, batch):
        def loss(trained):
            model = nnx.merge(graphdef, trained, rest)
            value, _ = squared(model, batch)
            return value, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

        (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, opt_state = tx.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), nnx.merge_state(rest, moved), opt_state, value

    opt_state, losses = tx.init(trained), []
    for batch in data:
        trained, rest, opt_state, value = step(trained, rest, opt_state, batch)
        losses.append(float(value))
    return leaves(nnx.merge(graphdef, trained, rest)), losses


def assert_close(found, expected):
    """Leaves alike: another program rounds in another order."""
    assert set(found) == set(expected)
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("loop", ["calls", "scan"])
def test_trains_as_a_loop_written_by_hand(loop):
    """Losses and every leaf, called step by step or through `step.fn` in their own scan."""
    tx, data, model = optax.adamw(1e-2), batches(), Theirs()
    before = leaves(model)
    step = tl_jax.make_step(model, squared, _PLAN, tx)
    state = step.init()
    if loop == "calls":
        losses = []
        for batch in data:
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    else:
        stacked = jax.tree.map(lambda *x: np.stack(x), *data)
        state, metrics = jax.jit(lambda s, b: jax.lax.scan(step.fn, s, b))(state, stacked)
        losses = metrics["loss"]
    assert set(metrics) == {"loss", "grad_norm", "size"}

    expected, expected_losses = by_hand(tx, data)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    found = leaves(step.merge(state))
    assert_close(found, expected)
    # Frozen means the same bits, running statistics included; everything else has moved.
    same = {path for path in found if found[path].tobytes() == before[path].tobytes()}
    body = {path for path in found if path.startswith("body/")}
    assert {"body/layers/1/mean", "body/layers/1/var"} <= body
    assert same == body | {"dropout/rngs/key"}


def test_their_module_stays_as_it_was():
    """Donated steps leave its arrays, flags and random stream alone."""
    model = Theirs()
    before, x = leaves(model), batches(1)[0]["x"]
    step = tl_jax.make_step(model, squared, _PLAN, optax.sgd(0.1))
    state = step.init()
    for batch in batches(2):
        state, _ = step(state, batch)
    for path, leaf in leaves(model).items():
        np.testing.assert_array_equal(leaf, before[path])
    np.testing.assert_array_equal(model(x), Theirs()(x))


def test_merged_module_has_the_modes_of_theirs():
    """Only the step holds frozen statistics still; what they get back trains as before."""
    step = tl_jax.make_step(Theirs(), squared, _PLAN, optax.sgd(0.1))
    merged = step.merge(step.init())
    assert merged.body.layers[1].use_running_average is False


def test_loss_with_a_key_gets_another_each_step():
    """`loss_fn(model, batch, key)`; the key is the state's, folded with the step."""

    def noisy(model, batch, key):
        return jax.random.uniform(key) + 0.0 * squared(model, batch)[0]

    step = tl_jax.make_step(Theirs(), noisy, _PLAN, optax.sgd(0.1))
    losses = []
    for key in (None, None, jax.random.key(5)):
        state = step.init(key)
        for batch in batches(2):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1] and losses[:2] == losses[2:4] != losses[4:]


def test_rates_by_pattern():
    """A bias at 10 moves ten times as far under plain SGD."""
    model, batch = Theirs(rate=0.0), batches(1)[0]
    moves = []
    for lr in ((), (("head/bias", 10.0),)):
        step = tl_jax.make_step(model, squared, Plan(preset="full", lr=lr), optax.sgd(0.01), donate=False)
        state = step.init()
        after, _ = step(state, batch)
        moves.append({path: np.asarray(after.trained[path] - state.trained[path]) for path in state.trained})
    for path, move in moves[0].items():
        # Differences of float32 numbers of order 1.
        np.testing.assert_allclose(moves[1][path], move * (10 if path == "head/bias" else 1), atol=1e-6)


def test_accumulation_is_the_mean_over_portions():
    """Two portions of four rows: the mean loss of the rows 0, 2, ... and of the rows 1, 3, ..."""
    model, batch = Theirs(rate=0.0), batches(1)[0]
    model.eval()
    step = tl_jax.make_step(model, squared, _PLAN, optax.sgd(0.1), accumulate=2)
    _, metrics = step(step.init(), batch)
    np.testing.assert_allclose(metrics["loss"], squared(model, batch)[0], rtol=1e-5)


def test_on_a_mesh_it_is_the_same_and_compiles_once(caplog):
    """Eight devices, three steps: leaves as on one device, one program for each."""
    mesh, data = meshes.build(Mesh()), batches(3)
    found = []
    for where in (None, mesh):
        step = tl_jax.make_step(Theirs(), squared, _PLAN, optax.adamw(1e-2), mesh=where)
        state = step.init()
        caplog.clear()
        # Not the size of the function's cache: a random stream among the donated arrays adds an entry, no program.
        with jax.log_compiles():
            for batch in data:
                state, _ = step(state, batch)
        assert sum("Compiling jit(_core)" in record.getMessage() for record in caplog.records) == 1
        found.append(leaves(step.merge(state)))
    assert_close(*found)


@pytest.mark.parametrize(
    "plan,message",
    [
        (Plan(train=("head/.*",), decay=((".*", 0.1),)), "decay"),
        (Plan(train=("head/.*",), layer_decay=0.5), "layer_decay"),
        (Plan(train=("head/.*",), lowest_lr=0.5), "lowest_lr"),
        (Plan(train=("head/.*",), batchnorm=((".*", "eval"),)), "batchnorm"),
        (Plan(train=("head/.*",), dropout="all"), "dropout"),
        (Plan(train=("head/.*",), n=2), "n need"),
        (Plan(train=("head/.*",), quantize="int8"), "quantize need"),
        (Plan(train=("head/.*",), prompt=2), "prompt need"),
        (Plan(preset="last_n", n=2), "preset=last_n"),
        (Plan(), "trains nothing"),
        (Plan(train=("tail/.*",)), "plan.train: 'tail/.*' matches nothing"),
        (Plan(train=("norm/mean",)), "plan.train: 'norm/mean' matches nothing"),
        (Plan(preset="full", lr=(("tail/.*", 2.0),)), "plan.lr: 'tail/.*' matches nothing"),
    ],
)
def test_a_plan_that_means_nothing_here_is_refused(plan, message):
    """Nothing of a plan is ignored in silence."""
    with pytest.raises(UserError, match=message):
        tl_jax.make_step(Theirs(), squared, plan, optax.sgd(0.1))


_QUIET = """
import logging, os, signal, warnings
import absl.logging, flax, grain, jax, numpy, optax, orbax.checkpoint, jax.numpy as jnp
from flax import nnx

def seen():
    known = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    loggers = [(log.name, log.level, list(log.handlers), log.propagate) for log in known
               if log.level or log.handlers or not log.propagate]
    root = (logging.root.level, list(logging.root.handlers))
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return dict(jax.config.values), loggers, root, signals, list(warnings.filters), dict(os.environ)

before = seen()
import tl_jax, tl_jax.cli, tl_jax.engine, tl_jax.runs
from tl_jax.config import Data, Experiment, Model, Plan, Task, Train
from tl_jax.data.examples import Examples

model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
step = tl_jax.make_step(model, lambda m, b: m(b).mean(), Plan(preset="full"), optax.sgd(0.1))
step(step.init(), jnp.ones((2, 2)))

records = [{"image": numpy.full((8, 8, 3), 20 * i, numpy.uint8)} for i in range(8)]
labels = numpy.arange(8) % 2
examples = Examples(records.__getitem__, [str(i) for i in range(8)], kind="image", classes=("a", "b"), labels=labels)
network = {"model_type": "resnet", "stem": "cifar", "depths": [1], "hidden_sizes": [4]}
exp = Experiment(model=Model(family="resnet", config=network, init="random"), data=Data(image_size=8, threads=0),
                 plan=Plan(preset="linear_probe"), train=Train(batch_size=8, steps=1))
engine = tl_jax.build(exp, data={"train": examples})
(batch,) = engine.train_batches(0, 1)
engine.train_step(engine.init(), batch)
names = ("JAX flags", "loggers", "root logger", "signal handlers", "warning filters", "environment")
changed = [name for name, old, new in zip(names, before, seen()) if old != new]
raise SystemExit(f"changed: {changed}" if changed else 0)
"""


def test_importing_and_building_changes_nothing_around_it():
    """No JAX flag, logger, cache folder, signal handler or warning filter, by the step or by a whole engine: only the
    command line sets any."""
    done = subprocess.run([sys.executable, "-c", _QUIET], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
