# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The mathematics of distillation beside NumPy in float64 and PyTorch, and what a step does with a teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
import toys
from flax import nnx

from tl_jax.config import Plan
from tl_jax.core import chain
from tl_jax.train.distill import Lesson, Teacher, feature_loss, soft_loss
from tl_jax.train.step import Step, initial_state

_RNG = np.random.default_rng(0)
_STUDENT, _TEACHER = _RNG.normal(size=(2, 5, 4)).astype(np.float32) * 3


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_soft_loss_is_that_of_numpy_and_pytorch(temperature):
    """T² times the divergence of the teacher's from the student's probabilities, and its gradient."""
    (torch,) = references.quiet("torch")
    p, q = (_softmax(x.astype(np.float64) / temperature) for x in (_TEACHER, _STUDENT))
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=-1)
    # Sums of four terms of order 10 in float32.
    np.testing.assert_allclose(soft_loss(_STUDENT, _TEACHER, temperature), expected, rtol=1e-5, atol=1e-5)

    student, teacher = torch.tensor(_STUDENT, requires_grad=True), torch.tensor(_TEACHER)
    functional = torch.nn.functional
    log_q, p = functional.log_softmax(student / temperature, -1), functional.softmax(teacher / temperature, -1)
    theirs = temperature**2 * functional.kl_div(log_q, p, reduction="none").sum(-1)
    np.testing.assert_allclose(expected, theirs.detach(), rtol=1e-5, atol=1e-5)
    theirs.sum().backward()
    ours = jax.grad(lambda x: soft_loss(x, _TEACHER, temperature).sum())(_STUDENT)
    np.testing.assert_allclose(ours, student.grad, rtol=1e-5, atol=1e-5)


def test_soft_loss_of_several_labels_has_the_gradient_of_binary_cross_entropy():
    """By tempered sigmoids; its value is that less the teacher's own entropy, so 0 for the teacher itself."""
    (torch,) = references.quiet("torch")
    student, teacher = torch.tensor(_STUDENT, requires_grad=True), torch.tensor(_TEACHER)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    cross = 9 * entropy(student / 3, torch.sigmoid(teacher / 3), reduction="none").mean(-1)
    own = 9 * entropy(teacher / 3, torch.sigmoid(teacher / 3), reduction="none").mean(-1)
    # Differences of numbers of order 10 in float32.
    found = soft_loss(_STUDENT, _TEACHER, 3.0, multi_label=True)
    np.testing.assert_allclose(found, (cross - own).detach(), rtol=1e-5, atol=1e-5)
    cross.sum().backward()
    ours = jax.grad(lambda x: soft_loss(x, _TEACHER, 3.0, multi_label=True).sum())(_STUDENT)
    np.testing.assert_allclose(ours, student.grad, rtol=1e-5, atol=1e-5)


def test_certain_teachers_stay_finite():
    """Logits a thousand apart, where a probability is 0 in float32: the loss and its gradient are numbers."""
    teacher = np.float32([[1000.0, -1000.0, 0.0]])
    loss, grad = jax.value_and_grad(lambda x: soft_loss(x, teacher, 1.0).sum())(np.float32([[0.0, 0.0, 1000.0]]))
    assert loss == 1000.0
    np.testing.assert_array_equal(grad, [[-1.0, 0.0, 1.0]])


def test_a_lesson_is_the_sum_of_its_shares():
    """(1 - weight) task + weight soft + features MSE for each example, by float64; `regressed` in place of the feature
    where there is one; each share told apart."""
    task_B, feature_BD, teacher_BD = (_RNG.normal(size=shape).astype(np.float32) for shape in ((5,), (5, 3), (5, 3)))
    batch = {"teacher_logits": _TEACHER, "teacher_feature": teacher_BD}
    loss_of = Lesson(2.0, 0.3, 0.25).around(lambda outputs, batch: (task_B, {"accuracy": task_B}))
    mse = np.mean((feature_BD.astype(np.float64) - teacher_BD) ** 2, axis=-1)
    expected = 0.7 * task_B + 0.3 * np.asarray(soft_loss(_STUDENT, _TEACHER, 2.0), np.float64) + 0.25 * mse
    for outputs in ({"feature": feature_BD}, {"feature": feature_BD[:, :1], "regressed": feature_BD}):
        losses, metrics = loss_of({"logits": _STUDENT, **outputs}, batch)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert set(metrics) == {"accuracy", "distill", "distill_features"}
        np.testing.assert_allclose(metrics["distill_features"], mse, rtol=1e-5)


def test_features_in_bfloat16_are_compared_in_float32():
    """A difference of 2⁻⁹ of a number near 1 is seen in its square."""
    found = feature_loss(jnp.full((1, 64), 1.0, jnp.bfloat16), jnp.full((1, 64), 1.0 + 2**-9))
    assert found.dtype == jnp.float32 and found[0] == 2.0**-18


class _Head(nnx.Linear):
    """Logits beside the feature."""

    def __call__(self, x, context):
        return {"feature": x, "logits": super().__call__(x)}


def _net(seed):
    """A student or a teacher whose head keeps the feature."""
    model = toys.Net()
    model.head = _Head(4, 3, rngs=nnx.Rngs(seed))
    return model


def _step(lesson, accumulate=1):
    """(trained before, trained after, metrics, teacher before and after) of a step that a teacher helps."""
    loss_of = toys.cross_entropy if lesson is None else lesson.around(toys.cross_entropy)
    plan = Plan(train=("blocks/.*", "head/.*"), batchnorm=((".*", "eval"),))
    objective, params = toys.objective(_net(1), plan, loss_of)
    chains, taught = chain.split(_net(2))
    tx = optax.sgd(0.1)
    step = Step(objective, tx, accumulate=accumulate, teacher=lesson and Teacher(_net(2), chains))
    state = initial_state(jax.tree.map(jnp.copy, params), objective.plan.trained, (), tx, jax.random.key(0))
    if lesson is not None:
        state = dataclasses.replace(state, teacher=taught)
    before = jax.device_get((state.trained, state.teacher))
    batch = {**toys.vectors(), "weight": np.array([1, 0, 2, 1, 1, 0.5, 1, 0], np.float32)}
    state, metrics = step(state, batch)
    return *before, jax.device_get(state.trained), jax.device_get(state.teacher), jax.device_get(metrics)


def test_weight_zero_is_no_distillation():
    """To the last bit of every parameter and of the loss."""
    _, _, plain, _, bare = _step(None)
    _, _, found, _, metrics = _step(Lesson(2.0, 0.0))
    jax.tree.map(np.testing.assert_array_equal, (found, metrics), (plain, bare))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_moves_the_student_towards_the_teacher_alone(accumulate):
    """With weight 1 the update is that of the weighted mean soft loss, whatever the portions, and labels do not count;
    the teacher's parameters are those that went in."""
    before, taught, after, still, metrics = _step(Lesson(2.0, 1.0), accumulate)
    jax.tree.map(np.testing.assert_array_equal, still, taught)
    batch, weight_B = toys.vectors(), np.array([1, 0, 2, 1, 1, 0.5, 1, 0], np.float32)
    model, chains = _net(1), chain.split(_net(1))[0]
    answers = _net(2)(batch)["logits"]

    def loss(trained):
        params = {**chain.split(model)[1], **trained}
        outputs, _ = chain.run_chains(model, chains, params, batch, lambda _: chain.EVAL)
        return jnp.sum(soft_loss(outputs["logits"], answers, 2.0) * weight_B) / weight_B.sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(before)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert metrics["loss"] == metrics["distill"]
    for path, leaf in after.items():
        # Sums over eight examples of order 1 in another order, times the rate.
        np.testing.assert_allclose(leaf, before[path] - 0.1 * grads[path], atol=1e-6, err_msg=path)
        assert np.abs(grads[path]).max() > 1e-4, path


def test_a_student_learns_from_its_teacher_what_its_labels_deny():
    """From sixteen vectors, each with the label after the teacher's: by the labels alone the student agrees with its
    teacher on few of five hundred others, by the teacher's probabilities alone on most."""
    chains, taught = chain.split(_net(2))
    batch, others = toys.vectors(16), toys.vectors(500, seed=1)
    answers = _net(2)(others)["logits"].argmax(-1)
    batch["label"] = np.asarray((_net(2)(batch)["logits"].argmax(-1) + 1) % 3, np.int32)
    agreement = {}
    for weight in (0.0, 1.0):
        plan = Plan(preset="full", batchnorm=((".*", "eval"),))
        objective, params = toys.objective(_net(1), plan, Lesson(2.0, weight).around(toys.cross_entropy))
        step = Step(objective, optax.adam(0.03), teacher=Teacher(_net(2), chains))
        state = initial_state(jax.tree.map(jnp.copy, params), objective.plan.trained, (), step.tx, jax.random.key(0))
        state = dataclasses.replace(state, teacher=taught)
        for _ in range(200):
            state, _ = step(state, batch)
        outputs, _ = chain.run_chains(_net(1), objective.chains, state.params, others, lambda _: chain.EVAL)
        agreement[weight] = np.mean(outputs["logits"].argmax(-1) == answers)
    assert agreement[0.0] < 0.3 and agreement[1.0] > 0.8, agreement
