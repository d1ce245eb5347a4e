# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The training step: gradients of what trains, donated arrays, portions of a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from tl_jax.config import Optimizer, Plan
from tl_jax.core import chain
from tl_jax.core.errors import UserError
from tl_jax.train import optimizer
from tl_jax.train.step import Step, initial_state

_LAST = Plan(preset="last_n", n=1)
# No example depends on the others of its batch.
_EVAL = Plan(preset="last_n", n=1, batchnorm=((".*", "eval"),))
# Hands the gradients out as its state, and moves nothing.
_SHOW = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def _start(model, plan, tx=_SHOW, loss_of=toys.cross_entropy, **options):
    """A step and a state whose arrays are its own."""
    objective, params = toys.objective(model, plan, loss_of)
    params = jax.tree.map(jnp.copy, params)
    state = initial_state(params, objective.plan.trained, objective.plan.moving, tx, jax.random.key(7))
    return Step(objective, tx, **options), state


def _whole_loss(step, model, batch, key):
    """Leaves -> mean loss and statistics, through all stages, nothing cut, nothing held apart."""
    chains, modes = step.objective.chains, step.objective.plan.modes

    def loss(params):
        outputs, mutable = chain.run_chains(model, chains, params, batch, modes.__getitem__, key)
        return toys.cross_entropy(outputs, batch)[0].mean(), mutable

    return loss


def _float64_norm(tree):
    return np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in tree.values()))


@pytest.mark.parametrize(
    "model,batch,plan",
    [
        (toys.small_bert(rate=0.2), toys.tokens(), _LAST),
        (toys.Net(rate=0.2), toys.vectors(), _LAST),
        (toys.Net(rate=0.2), toys.vectors(), Plan(train=("stem/norm/.*", "head/.*"))),
    ],
    ids=["bert_last_block", "last_block", "first_norm_and_head"],
)
def test_gradients_are_those_of_the_whole_loss(model, batch, plan):
    """The trained part of `jax.grad` over all leaves, uncut, with the same dropout; statistics and loss too."""
    step, state = _start(model, plan)
    key = jax.random.fold_in(state.key, state.step)
    whole = jax.jit(jax.value_and_grad(_whole_loss(step, model, batch, key), has_aux=True))
    (loss, mutable), expected = whole(state.params)
    state, metrics = step(state, batch)
    # Float32 sums in another order.
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    assert set(state.opt_state) == set(step.objective.plan.trained) and set(state.stats) == set(mutable)
    for path, gradient in state.opt_state.items():
        np.testing.assert_allclose(gradient, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)
    for path, leaf in state.stats.items():
        np.testing.assert_allclose(leaf, mutable[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_frozen_leaves_have_no_part_in_norm_and_clip():
    """`grad_norm` is that of the trained gradients, and a clip at just that norm changes nothing; the norm over all
    leaves is twice as large."""
    model, batch, plan = toys.Net(), toys.vectors(), Plan(train=("head/bias",))
    step, state = _start(model, plan)
    everything = jax.jit(jax.grad(_whole_loss(step, model, batch, None), has_aux=True))(state.params)[0]
    state, metrics = step(state, batch)
    norm = _float64_norm(state.opt_state)
    assert _float64_norm(everything) > 2 * norm
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)

    def moved(clip):
        tx = optimizer.build(
            Optimizer("sgd", clip_norm=clip, options={"momentum": 0.0}),
            optax.constant_schedule(1.0),
            lr={"head/bias": 1.0},
            decay={},
            frozen=set(everything) - {"head/bias"},
        )
        step, state = _start(model, plan, tx, donate=False)
        return {path: leaf - state.trained[path] for path, leaf in step(state, batch)[0].trained.items()}

    np.testing.assert_allclose(_float64_norm(moved(None)), norm, rtol=1e-4)
    np.testing.assert_allclose(_float64_norm(moved(float(norm) * 1.01)), norm, rtol=1e-4)
    np.testing.assert_allclose(_float64_norm(moved(float(norm) / 2)), norm / 2, rtol=1e-4)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_the_whole_batch_whatever_the_weights(accumulate):
    """Portions that count 0, a fraction or many examples: gradients, loss and metrics are those of one portion."""
    batch = {**toys.vectors(count=8), "weight": np.array([0, 2, 0.5, 0, 0, 3, 1, 0], np.float32)}

    def loss_of(outputs, batch):
        return toys.cross_entropy(outputs, batch)[0], {"first": outputs["logits"][:, 0]}

    found = {}
    for portions in (1, accumulate):
        step, state = _start(toys.Net(), _EVAL, loss_of=loss_of, accumulate=portions)
        state, metrics = step(state, batch)
        found[portions] = {**state.opt_state, **metrics}
    for name, expected in found[1].items():
        # Float32 sums in another order.
        np.testing.assert_allclose(found[accumulate][name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_loss_and_metrics_are_weighted_means():
    """An example of weight 2 is there twice, one of weight 0 is not."""
    model, batch = toys.Net(), toys.vectors(count=4)
    weight = np.array([2, 0, 1, 0.5], np.float32)
    losses = np.asarray(toys.cross_entropy(model(batch), batch)[0], np.float64)

    def loss_of(outputs, batch):
        return toys.cross_entropy(outputs, batch)[0], {"index": jnp.arange(4.0)}

    step, state = _start(model, _EVAL, loss_of=loss_of)
    _, metrics = step(state, {**batch, "weight": weight})
    # One program fuses what the oracle runs operation by operation.
    np.testing.assert_allclose(metrics["loss"], (losses * weight).sum() / weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["index"], (np.arange(4) * weight).sum() / weight.sum(), rtol=1e-6)


def test_a_batch_that_counts_nothing_moves_nothing():
    """No division by zero."""
    step, state = _start(toys.Net(), _LAST)
    state, metrics = step(state, {**toys.vectors(), "weight": np.zeros(8, np.float32)})
    assert float(metrics["loss"]) == 0 and float(metrics["grad_norm"]) == 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_statistics_follow_through_portions(accumulate):
    """BatchNorm's running mean moves once for each portion, in their order: rows i, i + n, ..."""
    model, batch = toys.Net(), toys.vectors()
    step, state = _start(model, Plan(preset="full"), accumulate=accumulate)
    linear = np.asarray(model.stem.linear(batch["x"]), np.float64)
    mean = np.zeros(4)
    for portion in range(accumulate):
        mean = 0.9 * mean + 0.1 * linear[portion::accumulate].mean(axis=0)
    state, _ = step(state, batch)
    np.testing.assert_allclose(state.stats["stem/norm/mean"], mean, rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_cut_is_refused():
    """One line with both numbers."""
    step, state = _start(toys.Net(), _LAST, accumulate=3)
    with pytest.raises(UserError, match="has 8 examples, which 3 portions do not divide"):
        step(state, toys.vectors(count=8))


def test_donated_arrays_are_gone_and_frozen_ones_live():
    """The caller's frozen arrays are the new state's, unmoved and uncopied."""
    step, state = _start(toys.Net(), _LAST, optax.adamw(1e-3))
    after, _ = step(state, toys.vectors())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.moving))
    assert len(state.frozen) == 6
    for path, leaf in state.frozen.items():
        assert not leaf.is_deleted() and after.frozen[path] is leaf
    assert after.key is state.key and np.isfinite(np.asarray(state.frozen["stem/linear/kernel"])).all()


def test_nothing_is_gone_without_donation():
    """The old state can be stepped from again, to the same bits."""
    step, state = _start(toys.Net(), _LAST, optax.adamw(1e-3), donate=False)
    first, _ = step(state, toys.vectors())
    second, _ = step(state, toys.vectors())
    for path in first.trained:
        np.testing.assert_array_equal(first.trained[path], second.trained[path])


def test_later_steps_do_not_compile_again(caplog):
    """One program for three steps."""
    step, state = _start(toys.Net(), _LAST, optax.adamw(1e-3))
    with jax.log_compiles():
        for seed in range(3):
            state, _ = step(state, toys.vectors(seed=seed))
    assert sum("Compiling jit(_core)" in record.getMessage() for record in caplog.records) == 1
    assert step.core._cache_size() == 1 and int(state.step) == 3


def test_dropout_changes_with_the_step_and_the_portion():
    """Same batch, same parameters: other masks in step 1, and other masks in portion 1."""
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 4, axis=0), toys.vectors())
    step, state = _start(toys.Net(rate=0.5), _EVAL, donate=False)
    zero, again = step(state, batch), step(state, batch)
    one = step(dataclasses.replace(state, step=state.step + 1), batch)
    assert float(zero[1]["loss"]) == float(again[1]["loss"]) != float(one[1]["loss"])

    # Rows 0 and 2 are one portion, 1 and 3 the other; weights choose which of them counts.
    halved, state = _start(toys.Net(rate=0.5), _EVAL, accumulate=2, donate=False)
    portions = [{**batch, "weight": np.array(weight, np.float32)} for weight in ([1, 0, 1, 0], [0, 1, 0, 1])]
    first, second = (float(halved(state, portion)[1]["loss"]) for portion in portions)
    assert first != second


def test_multiples_scale_updates_after_the_optimizer():
    """A leaf at 10 moves ten times as far; the others as before."""
    paths = toys.objective(toys.Net(), Plan(preset="linear_probe"))[0].plan.trained
    found = []
    for multiple in (1.0, 10.0):
        multiples = {**dict.fromkeys(paths, 1.0), "head/kernel": multiple}
        step, state = _start(toys.Net(), Plan(preset="linear_probe"), optax.sgd(0.1), multiples=multiples, donate=False)
        after, _ = step(state, toys.vectors())
        found.append({path: np.asarray(after.trained[path] - state.trained[path], np.float64) for path in paths})
    # The difference of float32 numbers of order 1.
    np.testing.assert_allclose(found[1]["head/kernel"], 10 * found[0]["head/kernel"], atol=1e-6)
    np.testing.assert_allclose(found[1]["head/bias"], found[0]["head/bias"], atol=1e-6)


def test_schedule_is_reported_for_the_step_that_was_made():
    """`learning_rate` of step 0 in the first line."""
    step, state = _start(toys.Net(), _LAST, schedule=lambda step: 1.0 + step)
    rates = []
    for _ in range(2):
        state, metrics = step(state, toys.vectors())
        rates.append(float(metrics["learning_rate"]))
    assert rates == [1.0, 2.0]


@pytest.mark.parametrize("form", ["fn", "__call__"])
def test_step_works_inside_somebody_elses_scan(form):
    """Over three batches it equals three calls."""
    step, state = _start(toys.Net(rate=0.5), _LAST, optax.adamw(1e-2), donate=False)
    batches = [toys.vectors(seed=seed) for seed in range(3)]
    scanned, metrics = jax.jit(lambda s, b: jax.lax.scan(getattr(step, form), s, b))(
        state, jax.tree.map(lambda *x: np.stack(x), *batches)
    )
    for batch in batches:
        state, last = step(state, batch)
    # Another program rounds in another order.
    np.testing.assert_allclose(metrics["loss"][-1], last["loss"], rtol=1e-5)
    for path in state.params:
        np.testing.assert_allclose(scanned.params[path], state.params[path], rtol=1e-4, atol=1e-5, err_msg=path)
