# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The cached cut against the plain path: the same training, without the prefix in the step."""

import jax
import makers
import numpy as np
import pytest

from tl_jax import caching, evaluation
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.train.activations import Activations, used

pytestmark = pytest.mark.usefixtures("one_device")

_PLANS = [{"plan__preset": "linear_probe"}, {"plan__preset": "last_n", "plan__n": 1}]


def probe(folder, **overrides):
    """Texts in two buckets, the backbone frozen below the last block or the head, three epochs."""
    exp = makers.text_run(folder, epochs=3)
    return makers.changed(exp, **{"plan__preset": "linear_probe", **overrides})


def trained(exp, cached: bool):
    """Losses of every step, the last state, and metrics of validation and of some training examples."""
    engine = build(exp)
    state = engine.init()
    if cached:
        caching.Cache(engine).fill(state)
    losses = []
    for batch in engine.train_batches(0, engine.steps):
        assert ("crossing" in batch) == cached and (engine.checkpoint.family.INPUTS[0] in batch) != cached
        state, metrics = engine.train_step(state, batch)
        losses.append(float(metrics["loss"]))
    sets = engine.sets["validation"], evaluation.thinned(engine.sets["train"], 7), engine.sets["test"]
    return losses, state, [evaluation.measure(engine, state, examples).metrics for examples in sets]


@pytest.mark.parametrize("overrides", _PLANS, ids=["probe", "last block"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_cached_training_is_plain_training(tmp_path, overrides, accumulate):
    """Losses, parameters and metrics, with dropout above the cut: a prefix computed in another batch, at another
    padded length, differs by float32 rounding only."""
    exp = probe(tmp_path, train__accumulate=accumulate, train__batch_size=8 * accumulate, **overrides)
    (plain, state, metrics), (cached, other, found) = trained(exp, False), trained(exp, True)
    assert len(plain) == 18 // accumulate and plain[-1] < plain[0]
    np.testing.assert_allclose(cached, plain, rtol=1e-5)
    for path, leaf in state.trained.items():
        np.testing.assert_allclose(other.trained[path], leaf, atol=1e-4, err_msg=path)
    for one, two in zip(metrics, found):
        assert two == pytest.approx(one, rel=1e-4)


def test_images_are_kept_too(tmp_path):
    """Of one shape, without lengths and buckets."""
    exp = makers.image_run(tmp_path, epochs=2, accumulate=1)
    exp = makers.changed(exp, plan__preset="linear_probe", data__augment=())
    (plain, _, metrics), (cached, _, found) = trained(exp, False), trained(exp, True)
    np.testing.assert_allclose(cached, plain, rtol=1e-5)
    assert metrics[0] == pytest.approx(found[0], rel=1e-4)


def test_cached_step_holds_no_prefix(tmp_path):
    """Its FLOPs are those of the head: below a hundredth of the plain step's."""
    engine = build(probe(tmp_path))
    state = engine.init()

    def flops():
        batch = next(iter(engine.train_batches(0, 1)))
        constant = {"frozen": state.frozen, "key": state.key}
        return engine.step.core.lower(state.moving, constant, batch).compile().cost_analysis()["flops"]

    plain = flops()
    caching.Cache(engine).fill(state)
    assert flops() < plain / 100


def test_filling_again_gives_the_same_bits(tmp_path):
    """So that a run that was interrupted goes on with what it had."""
    engine = build(probe(tmp_path, **_PLANS[1]))
    state, found = engine.init(), []
    for _ in range(2):
        caching.Cache(engine).fill(state)
        found.append(engine.stores["train"].rows(np.arange(len(engine.sets["train"])), 16))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize(
    "overrides,reason",
    [
        ({"plan__preset": "full"}, "no block lies below the cut"),
        ({"plan__dropout": "all"}, "no block lies below the cut"),
        ({"train__epochs": 1}, "no example is seen twice"),
        ({"train__cache": "off"}, "train.cache is off"),
    ],
)
def test_what_speaks_against_keeping_is_said(tmp_path, overrides, reason):
    """`auto` goes without; `on` is refused before anything runs."""
    assert reason in caching.Cache(build(probe(tmp_path, **overrides))).why_not()
    if "train__cache" not in overrides:
        with pytest.raises(UserError, match=f"train.cache.*{reason}"):
            build(probe(tmp_path, train__cache="on", **overrides))


def test_changing_images_are_not_kept(tmp_path):
    """Each epoch crops and flips anew."""
    engine = build(makers.changed(makers.image_run(tmp_path), plan__preset="linear_probe"))
    assert "data.augment" in caching.Cache(engine).why_not()


def test_too_much_memory_is_not_taken(tmp_path, monkeypatch):
    """The figure counts every example at its padded length."""
    engine = build(probe(tmp_path))
    assert caching.Cache(engine).why_not() is None
    examples = len(engine.sets["train"]) + len(engine.sets["validation"])
    assert caching.Cache(engine).nbytes == examples * 4 * engine.checkpoint.config.hidden_size
    monkeypatch.setattr(caching, "_SHARE", 1e-9)
    assert "of memory" in caching.Cache(engine).why_not()


def test_rows_fill_up_and_cut_to_the_length():
    """Examples of lengths 2 and 4 in a batch of length 3: zeros behind the short one, the long one's tail cut."""
    lengths = [2, 4, 2, 4]

    def shapes(length):
        return {"x": jax.ShapeDtypeStruct((1, length, 2), np.float32), "y": jax.ShapeDtypeStruct((1, 1), np.int32)}

    whole = {n: np.random.default_rng(n).normal(size=(lengths[n], 2)).astype(np.float32) for n in range(4)}
    store = Activations(lengths, shapes)

    def crossing(ids):
        x = np.stack([whole[n] for n in ids] + [np.full_like(whole[ids[0]], np.nan)])
        tree = {"x": x, "y": np.array([*ids, 99], np.int32)[:, None]}
        return np.array([*ids, ids[0]]), np.array([*[1.0] * len(ids), 0.0]), tree

    store.fill([[2, 0], [1], [3]], crossing)
    found = store.rows(np.array([3, 0, 0]), 3)
    expected = [whole[3][:3], np.concatenate([whole[0], np.zeros((1, 2))])]
    np.testing.assert_array_equal(found["x"], [expected[0], expected[1], expected[1]])
    np.testing.assert_array_equal(found["y"], [[3], [0], [0]])
    assert store.nbytes == sum(2 * n * 4 for n in lengths) + 4 * 4


def test_used_finds_what_is_read():
    """Through nested calls too; what is only handed through an operation that drops it counts as read."""
    tree = {name: jax.ShapeDtypeStruct((2,), np.float32) for name in "abc"}
    found = used(lambda t: (jax.jit(lambda x: x + 1)(t["a"]), t["c"]), tree)
    assert found["a"] is not None and found["b"] is None and found["c"] is not None
