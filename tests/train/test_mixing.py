# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""mixup and CutMix: images and targets as timm makes them of the same chances, whatever the devices and portions."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import makers
import numpy as np
import optax
import pytest
import references

from tl_jax import caching, config, evaluation, runs
from tl_jax.core.errors import UserError
from tl_jax.engine import build
from tl_jax.parallel import mesh as meshes
from tl_jax.parallel import sharding
from tl_jax.train.mixing import Draw, Mix
from tl_jax.train.step import Counted, Step, initial_state

_BATCH, _HEIGHT, _WIDTH, _CLASSES = 6, 9, 14, 4


def _by_timm(monkeypatch, images, labels, draw, multi_label):
    """What timm makes of NumPy's images [B, H, W, C] when its chances are those of `draw`."""
    import torch

    timm = references.timm_module("data/mixup.py")
    centre = iter((int(draw.y), int(draw.x)))
    chances = types.SimpleNamespace(
        # First whether to mix at all, then whether to cut.
        rand=iter((0.0, 0.0 if draw.cutmix else 0.9)).__next__,
        beta=lambda a, b: float(draw.share),
        randint=lambda low, high, size: next(centre),
    )
    monkeypatch.setattr(timm, "np", types.SimpleNamespace(random=chances, sqrt=np.sqrt, clip=np.clip))
    mixup = timm.Mixup(0.3, 0.7, label_smoothing=0.0, num_classes=_CLASSES, multi_label=multi_label)
    found, targets = mixup(torch.from_numpy(images.transpose(0, 3, 1, 2)).clone(), torch.from_numpy(labels))
    return found.numpy().transpose(0, 2, 3, 1), targets.numpy()


def _batch(multi_label=False):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(_BATCH, _HEIGHT, _WIDTH, 3)).astype(np.float32)
    labels = rng.integers(0, _CLASSES, _BATCH)
    return images, (rng.random((_BATCH, _CLASSES)) > 0.5).astype(np.float32) if multi_label else labels


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    "draw",
    [
        (False, 0.3, 0, 0),
        (True, 0.3, 4, 7),
        (True, 0.6, 0, 13),
        (True, 0.05, 8, 0),
        (True, 0.999, 4, 7),
        (True, 0.0, 4, 7),
    ],
    ids=["mixup", "cutmix", "corner", "large", "nothing", "all"],
)
def test_images_and_targets_are_those_of_timm(monkeypatch, draw, multi_label):
    """Of the same share and centre: partners, the box, and the share corrected by what of the box is cut off."""
    images, labels = _batch(multi_label)
    draw = Draw(*map(jnp.asarray, draw))
    batch = {"pixel_values": images, "label": labels, "weight": np.arange(6.0)}
    found = Mix("pixel_values", _CLASSES, 0.3, 0.7).apply(jax.tree.map(jnp.asarray, batch), draw)
    expected, targets = _by_timm(monkeypatch, images, labels, draw, multi_label)
    # Products and sums of float32 numbers of order 1.
    np.testing.assert_allclose(found["pixel_values"], expected, atol=1e-6)
    np.testing.assert_allclose(found["label"], targets, atol=1e-6)
    np.testing.assert_array_equal(found["weight"], batch["weight"])


def test_chances_are_those_that_were_asked_for():
    """Over 4000 keys: half of the batches are cut, centres lie anywhere, shares spread as Beta(a, a) does, of each."""
    mix = Mix("pixel_values", _CLASSES, mixup=0.2, cutmix=2.0)
    draws = jax.vmap(lambda key: mix.draw(key, _HEIGHT, _WIDTH))(jax.random.split(jax.random.key(0), 4000))
    cut, share = np.asarray(draws.cutmix), np.asarray(draws.share)
    # Four standard deviations of a mean of 4000 coins, and of 2000 shares.
    assert abs(cut.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    for chosen, alpha in ((share[~cut], 0.2), (share[cut], 2.0)):
        assert abs(chosen.mean() - 0.5) < 4 * 0.5 / 2000**0.5
        np.testing.assert_allclose(chosen.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.1)
    assert set(np.asarray(draws.y)) == set(range(_HEIGHT)) and set(np.asarray(draws.x)) == set(range(_WIDTH))
    for only, cuts in (({"mixup": 1.0}, False), ({"cutmix": 1.0}, True)):
        draws = jax.vmap(lambda key, only=only: Mix("x", 2, **only).draw(key, 8, 8))(
            jax.random.split(jax.random.key(0))
        )
        assert (np.asarray(draws.cutmix) == cuts).all() and np.isfinite(draws.share).all()


class _Squares:
    """The squared distance of a projected image from what its label stands for."""

    def prefix(self, frozen, batch):
        return None

    def loss(self, trained, frozen, stats, crossing, batch, key):
        guesses_B = jnp.tensordot(batch["pixel_values"], trained["w"], 3)
        losses_B = jnp.square(guesses_B - batch["label"] @ jnp.arange(4.0)) * batch["weight"]
        return losses_B.sum(), Counted(batch["weight"].sum(), {}, {})


def _losses(devices=1, accumulate=1, mix=True):
    """Of three steps on the same batch of 8, from the same parameters."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, _HEIGHT, _WIDTH, 3)).astype(np.float32)
    batch = {
        "pixel_values": images,
        "label": np.eye(4, dtype=np.float32)[np.arange(8) % 4],
        "weight": np.array([1, 1, 0, 2, 1, 0, 1, 1], np.float32),
    }
    mesh = meshes.build(config.Mesh(data=devices), jax.devices()[:devices])
    mix = Mix("pixel_values", _CLASSES, mixup=1.0, cutmix=1.0) if mix else None
    tx = optax.sgd(0.0)  # So that losses differ by what is drawn alone.
    step = Step(_Squares(), tx, accumulate=accumulate, mix=mix, place=lambda batch: sharding.put_batch(batch, mesh))
    params = jax.device_put({"w": jnp.ones((_HEIGHT, _WIDTH, 3))}, sharding.replicated(mesh))
    state = initial_state(params, ("w",), (), tx, jax.device_put(jax.random.key(0), sharding.replicated(mesh)))
    state = dataclasses.replace(state, step=jax.device_put(state.step, sharding.replicated(mesh)))
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


def test_mixing_depends_on_no_device_and_no_portion():
    """One device, eight, and four portions give the same losses, and no mixing others; each step draws anew."""
    one = _losses()
    # Float32 sums in another order.
    np.testing.assert_allclose(_losses(devices=8), one, rtol=1e-4)
    np.testing.assert_allclose(_losses(accumulate=4), one, rtol=1e-4)
    assert (np.abs(np.subtract(_losses(mix=False), one)) > 0.01 * np.array(one)).all()
    assert min(np.abs(np.diff(one))) > 0.01 * min(one)


def test_a_run_mixes_and_is_tested_unmixed(tmp_path):
    """With smoothing, class weights and a balanced sampler; what is measured are whole images, the same when opened."""
    exp = makers.image_run(tmp_path, mixup=0.2, cutmix=0.2)
    options = {"label_smoothing": 0.1, "class_weights": "effective"}
    exp = makers.changed(exp, task__options=options, data__sampler="balanced")
    summary = runs.run(exp, tmp_path / "run", quiet=True)
    assert summary["train"]["loss"] < np.log(3) and set(summary["details"]["recall_by_class"]) == {"0", "1", "2"}
    engine, state = runs.open_run(tmp_path / "run", with_data=True)
    found = evaluation.measure(engine, state, engine.sets["test"]).metrics
    assert found == pytest.approx(summary["test"], rel=1e-5)


def test_mixing_speaks_against_keeping_what_crosses_the_cut(tmp_path):
    """The inputs are mixed; `cache=on` is refused with the reason."""
    exp = makers.changed(makers.image_run(tmp_path, mixup=0.2), plan__preset="linear_probe", data__augment=())
    assert "train.mixup" in caching.Cache(build(exp)).why_not()
    with pytest.raises(UserError, match="train.cache: is on, but train.mixup or train.cutmix changes the images"):
        build(makers.changed(exp, train__cache="on"))


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"train__cutmix": 0.1}, "train.cutmix: mixes images"),
        ({"train__mixup": -0.1}, "train.mixup is -0.1, must be at least 0"),
    ],
)
def test_mixing_of_what_is_no_image_is_refused(tmp_path, overrides, message):
    """Texts have no pixels, and a share has no negative alpha."""
    with pytest.raises(UserError, match=message):
        build(makers.changed(makers.text_run(tmp_path), **overrides))
