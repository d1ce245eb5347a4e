# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Augmented training above a cached cut: some changed versions of every example, computed once and shown in turns."""

import jax
import makers
import numpy as np
import pytest

from tl_jax import caching, config, evaluation
from tl_jax.core.errors import UserError
from tl_jax.engine import build

pytestmark = pytest.mark.usefixtures("one_device")

_VIEWS = 2


def probe(folder, **overrides):
    """Images that are flipped and cropped, the head alone trains, four steps in each of five epochs."""
    exp = makers.image_run(folder, epochs=5, accumulate=1)
    given = {"plan__preset": "linear_probe", "train__cache_views": _VIEWS, "data__threads": 0}
    return makers.changed(exp, **{**given, **overrides})


@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_epochs_show_one_view_after_the_other(tmp_path, cache):
    """Every batch brings what the prefix makes of the examples as the view of its epoch changes them; another batch
    size rounds otherwise. What is evaluated is unchanged."""
    engine = build(probe(tmp_path, train__cache=cache, train__cache_dir=str(tmp_path) if cache == "disk" else None))
    state, train, seen = engine.init(), engine.sets["train"], []
    prefix = jax.jit(engine.step.objective.prefix)

    def expected(indices, view):
        rngs = [np.random.default_rng((engine.exp.seed, 2, view, index)) for index in indices]
        batch = engine.transform.collate([engine.transform(train[i], rng) for i, rng in zip(indices, rngs)])
        return {name: np.asarray(leaf) for name, leaf in prefix(state.frozen, batch)[""].x.items()}

    caching.Cache(engine).fill(state)
    for step in (0, 3, 4, 9, 19):
        with_view = next(engine.train_batches(step, step + 1))
        indices, _, _ = engine.train_plan.batch(step)
        view = step // engine.steps_per_epoch % _VIEWS
        ((name, found),) = [(n, leaf) for n, leaf in with_view["crossing"][""].x.items() if leaf is not None]
        np.testing.assert_allclose(found, expected(indices, view)[name], atol=1e-5)
        assert np.abs(found - expected(indices, 1 - view)[name]).max() > 1e-3
        np.testing.assert_array_equal(with_view["label"], train.labels[indices])
        seen.append(view)
    assert set(seen) == {0, 1}
    assert "pixel_values" in next(engine.eval_batches(evaluation.thinned(train, 7)))
    assert "crossing" in next(engine.eval_batches(engine.sets["validation"]))


@pytest.mark.parametrize(
    "overrides,reason",
    [
        ({"plan__preset": "full"}, "train.cache_views: is 2, but no block lies below the cut"),
        ({"train__cache": "off"}, "train.cache_views goes with a cache"),
        ({"data__augment": ()}, "train.cache_views goes with data.augment"),
        ({"train__epochs": 2}, "train.cache_views: is 2, but no view of an example is seen twice"),
        ({"train__cache_views": 0}, "train.cache_views is 0"),
    ],
)
def test_views_that_make_no_sense_are_refused(tmp_path, overrides, reason):
    """Before anything runs."""
    with pytest.raises(UserError, match=reason):
        config.validate(probe(tmp_path, **overrides))
        build(probe(tmp_path, **overrides))


def test_a_run_that_needs_views_does_not_go_without(tmp_path, monkeypatch):
    """New changes in every epoch would be another training than the one begun elsewhere."""
    engine = build(probe(tmp_path))
    monkeypatch.setattr(caching, "_SHARE", 1e-9)
    with pytest.raises(UserError, match="of memory"):
        caching.Cache(engine).why_not(engine.init())
