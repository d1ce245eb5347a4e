# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`attend` against a float64 reference in NumPy, with and without the path that can drop weights."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tl_jax.nn import attention, scores
from tl_jax.nn.attention import attend
from tl_jax.nn.functions import dropout
from tl_jax.parallel import collectives

# B batch, T queries, S keys, N heads, K heads of keys, H width of a head
B, T, S, N, K, H = 3, 6, 6, 4, 2, 8
MASK = np.arange(S) < np.array([[6], [4], [0]])


def drawn(heads=N, keys=S):
    """Queries, keys and values, such that the weights are far from uniform."""
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, keys, heads, H), (B, keys, heads, H)
    return [2 * rng.normal(size=shape).astype(np.float32) for shape in shapes]


def reference(q, k, v, mask=None, *, bias=None, causal=False, window=None, scale=None):
    """In float64, one query at a time, over the keys that it may see; nothing where there is none."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = [
            s
            for s in range(k.shape[1])
            if (mask is None or mask[b, t, s]) and (not causal or s <= t) and (window is None or t - s < window)
        ]
        if seen:
            head = n // (q.shape[2] // k.shape[2])
            scores = k[b, seen, head].astype(float) @ q[b, t, n] * (q.shape[-1] ** -0.5 if scale is None else scale)
            if bias is not None:
                scores = scores + np.broadcast_to(bias, (B, N, T, k.shape[1]))[b, n, t, seen]
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, seen, head] / weights.sum()
    return out


CASES = {
    "plain": {},
    "padded": {"mask": MASK},
    "by query": {"mask": np.random.default_rng(2).random((B, T, S)) < 0.4},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 2},
    "scale": {"scale": 0.5},
    "bias": {"bias": np.random.default_rng(1).normal(size=(1, N, T, S)).astype(np.float32)},
    "all": {
        "mask": MASK,
        "causal": True,
        "window": 3,
        "scale": 1.0,
        "bias": np.eye(T, S, dtype=np.float32)[None, None],
    },
}


@pytest.mark.parametrize("heads", [N, K])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rate", [0.0, 1e-12])
def test_attention_is_its_formula(name, heads, rate):
    """Alone and together, also with fewer heads of keys; at rate 1e-12 the other path runs and drops nothing."""
    options = dict(CASES[name])
    mask = options.pop("mask", None)
    arrays = drawn(heads)
    found = np.asarray(attend(*arrays, mask, rate=rate, key=jax.random.key(0), **options))
    mask = np.ones((B, T, S), bool) if mask is None else np.broadcast_to(mask.reshape(B, -1, S), (B, T, S))
    expected = reference(*arrays, mask, **options)
    rows = mask.any(axis=2)
    # Float32 sums of at most 8 terms of order 4.
    np.testing.assert_allclose(found[rows], expected[rows], atol=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("portions", [1, B])
@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_formula(monkeypatch, name, rate, portions):
    """In queries, keys, values and bias, with fewer heads of keys, against what JAX derives of the formula with the
    same weights dropped; also where an example has nothing to attend to, and in portions as large batches are."""
    monkeypatch.setattr(scores, "_portions", lambda *_: portions)
    options = {"bias": np.zeros((1, 1, 1, 1), np.float32)} | CASES[name]
    mask, causal = options.get("mask", np.ones((B, 1, S), bool)), options.get("causal", False)
    behind = np.arange(T)[:, None] - np.arange(S)
    seen = (behind >= 0) & (behind < options.get("window", S)) if causal else np.ones((T, S), bool)
    seen = seen & np.broadcast_to(mask.reshape(B, 1, -1, S), (B, 1, T, S))

    def formula(q, k, v, bias):
        k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) * options.get("scale", H**-0.5) + bias
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e38))
        return jnp.einsum("bnts,bsnh->btnh", dropout(weights, rate, jax.random.key(0)), v)

    def ours(q, k, v, bias):
        rest = {key: value for key, value in options.items() if key not in ("mask", "bias")}
        return attend(q, k, v, options.get("mask"), bias=bias, rate=rate, key=jax.random.key(0), **rest)

    arrays = *drawn(K), options["bias"]
    cotangent = np.random.default_rng(3).normal(size=(B, T, N, H)).astype(np.float32)
    (found, gradients), (expected, wanted) = (
        (y, pull(cotangent)) for y, pull in (jax.vjp(f, *arrays) for f in (ours, formula))
    )
    # Float32 sums of at most 8 terms of order 10, those of a bias of up to 432.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)


def test_a_large_batch_in_portions_moves_nothing_between_devices(monkeypatch):
    """Forwards and backwards each of eight devices computes its own examples, a portion of them at a time."""
    monkeypatch.setattr(scores, "_LARGE", 0)
    mesh = jax.make_mesh((8,), ("data",))
    shape = jax.ShapeDtypeStruct((32, T, N, H), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    gradient = jax.jit(jax.grad(lambda q, k, v: (attend(q, k, v) ** 2).sum(), (0, 1, 2)))
    text = gradient.lower(shape, shape, shape).compile().as_text()
    assert "f32[1,4,6,6]" in text and not collectives.counted(text)


@pytest.mark.parametrize(
    ("batch", "tokens", "portions"), [(64, 128, 4), (64, 8, 1), (33, 128, 1)], ids=["large", "small", "uneven"]
)
def test_portions_are_of_large_batches_that_they_divide(batch, tokens, portions):
    """64 × 4 × 128 × 128 scores take 17 MB; eight devices share a batch."""
    x = jnp.zeros((batch, tokens, N, H))
    assert scores._portions(x, x) == portions


def test_queries_may_be_fewer_than_keys():
    """As in attention across two sequences."""
    q, k, v = drawn(keys=9)
    np.testing.assert_allclose(attend(q, k, v), reference(q, k, v), atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_gradients_of_a_fully_masked_example_are_finite(rate):
    """A NaN there would spread over the whole batch."""

    def total(q, k, v):
        return attend(q, k, v, MASK, rate=rate, key=jax.random.key(0)).sum()

    assert all(np.isfinite(grad).all() for grad in jax.grad(total, (0, 1, 2))(*drawn()))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "cudnn"),
        ({"dtype": jnp.float32}, "xla"),
        ({"backend": "cpu"}, "xla"),
        ({"capability": "7.5"}, "xla"),
        ({"capability": "gfx90a"}, "xla"),
        ({"width": 12}, "xla"),
        ({"queries": 7}, "xla"),
        ({"queries": 7, "mask": None}, "cudnn"),
        ({"bias": 0}, "xla"),
    ],
)
def test_the_fused_kernel_is_chosen_where_it_can_run(monkeypatch, changed, expected):
    """By device, dtype and sizes; it would raise on others."""
    case = {"backend": "gpu", "capability": "9.0", "dtype": jnp.bfloat16, "width": 64, "queries": 8, "mask": MASK}
    case |= {"bias": None} | changed
    monkeypatch.setattr(jax, "default_backend", lambda: case["backend"])
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=case["capability"])])
    q, k = jnp.zeros((1, case["queries"], 2, case["width"]), case["dtype"]), jnp.zeros((1, 8, 2, case["width"]))
    assert attention._implementation(q, k, case["mask"], case["bias"]) == expected
