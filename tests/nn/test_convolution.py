# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions by other means are those of `jax.lax`, forwards and backwards, and only CPUs have them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from tl_jax.nn.convolution import Conv, convolve

_CASES = {
    "point": dict(shape=(2, 5, 6, 4), outputs=7, size=(1, 1)),
    "point, every second": dict(shape=(2, 5, 6, 4), outputs=7, size=(1, 1), strides=(2, 2)),
    "point of a sequence": dict(shape=(2, 9, 4), outputs=3, size=(1,), strides=(3,)),
    "depthwise": dict(shape=(2, 7, 6, 5), outputs=5, size=(3, 5), padding=((1, 1), (2, 2)), groups=5),
    "depthwise, every second": dict(shape=(2, 8, 7, 3), outputs=3, size=(3, 3), strides=(2, 2), padding=1, groups=3),
    "depthwise, uneven edges": dict(shape=(1, 6, 9, 3), outputs=3, size=(5, 4), padding=((0, 3), (2, 1)), groups=3),
    "depthwise, SAME": dict(shape=(1, 6, 9, 3), outputs=3, size=(4, 3), strides=(2, 3), padding="SAME", groups=3),
    "depthwise, a stride beyond the kernel": dict(shape=(1, 9, 8, 2), outputs=2, size=(2, 2), strides=(3, 3), groups=2),
    "dense": dict(shape=(2, 7, 6, 5), outputs=4, size=(3, 5), padding=((1, 1), (2, 2))),
    "dense, every second": dict(shape=(2, 8, 7, 3), outputs=4, size=(3, 3), strides=(2, 2), padding=1),
    "dense, uneven edges": dict(shape=(1, 6, 9, 3), outputs=2, size=(5, 4), padding=((0, 3), (2, 1))),
    "dense, SAME": dict(shape=(1, 6, 9, 3), outputs=5, size=(4, 3), strides=(2, 3), padding="SAME"),
    "dense, a stride beyond the kernel": dict(shape=(1, 9, 8, 2), outputs=3, size=(2, 2), strides=(3, 3)),
    "dense, padding beyond the kernel": dict(shape=(2, 4, 5, 2), outputs=3, size=(2, 1), padding=((3, 2), (1, 2))),
    "dense, many channels": dict(shape=(2, 7, 6, 32), outputs=33, size=(3, 3), padding=1),
    "dense, many channels, uneven edges": dict(shape=(1, 5, 8, 33), outputs=32, size=(3, 3), padding=((0, 3), (2, 0))),
    "dense, many channels, no edges": dict(shape=(2, 8, 3, 32), outputs=32, size=(3, 3)),
    "dense of a sequence": dict(shape=(2, 9, 4), outputs=3, size=(3,), strides=(2,), padding=1),
    "depthwise of a sequence": dict(shape=(2, 9, 4), outputs=4, size=(3,), padding=1, groups=4),
}


def layers(case):
    """Ours and the library's, of the same numbers, and an input."""
    rest = {"strides": case.get("strides", 1), "padding": case.get("padding", "VALID")}
    rest["feature_group_count"] = case.get("groups", 1)
    made = [
        kind(case["shape"][-1], case["outputs"], case["size"], **rest, rngs=nnx.Rngs(0)) for kind in (Conv, nnx.Conv)
    ]
    return *made, jax.random.normal(jax.random.key(1), case["shape"])


@pytest.mark.parametrize("name", _CASES)
def test_outputs_and_gradients_are_those_of_the_library(name):
    """Of the input, the kernel and the bias; sums of up to 126 products in another order."""
    ours, theirs, x = layers(_CASES[name])

    def found(layer):
        graphdef, params = nnx.split(layer)
        return jax.jit(jax.value_and_grad(lambda params, x: jnp.sin(nnx.merge(graphdef, params)(x)).sum(), (0, 1)))(
            params, x
        )

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found(ours), found(theirs))


@pytest.mark.parametrize("name", ["point", "depthwise"])
def test_a_program_has_the_means_of_its_platform(name):
    """For a CPU no convolution; for a GPU and a TPU the library's own, in the backward pass too."""
    layer, _, x = layers(_CASES[name])
    graphdef, params = nnx.split(layer)
    gradient = jax.jit(jax.grad(lambda params, x: nnx.merge(graphdef, params)(x).sum(), (0, 1)))
    texts = {
        name: export.export(gradient, platforms=[name])(params, x).mlir_module() for name in ("cpu", "cuda", "tpu")
    }
    having = {name for name, text in texts.items() if "stablehlo.convolution" in text}
    assert having == {"cuda", "tpu"}


def test_convolutions_in_a_loop_lie_as_the_library_wants_them():
    """Channels last and examples first, in the gradients too: XLA turns no operand within a loop, and in another order
    computes without its library. As JAX writes them they lie otherwise."""

    def orders(function):
        def loss(kernel, x):
            y = function(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return jnp.sin(y).sum()

        def body(_, carry):
            return tuple(part - slope for part, slope in zip(carry, jax.grad(loss, (0, 1))(*carry)))

        program = jax.jit(lambda *carry: jax.lax.fori_loop(0, 3, body, carry))
        text = program.lower(jnp.ones((3, 3, 4, 4)), jnp.ones((2, 8, 8, 4))).compile().as_text()
        return set(re.findall(r"dim_labels=(\S+_\S+->\w+)", text))

    assert orders(convolve) == {"b01f_01io->b01f"} != orders(jax.lax.conv_general_dilated)


def test_bfloat16_is_summed_in_float32():
    """As the library does: 49 products of order 1 to one rounding of the result."""
    x, kernel = jnp.ones((1, 7, 7, 2), jnp.bfloat16), jnp.full((7, 7, 1, 2), 1.0078125, jnp.bfloat16)
    y = convolve(x, kernel, (1, 1), "VALID", feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.float32(jnp.bfloat16(49 * 1.0078125)))


def test_three_by_three_takes_fewer_multiplications_and_rounds_no_more():
    """16 for the 36 of a tile, forwards and in both gradients, with additions that are few beside 64 channels; against
    float64 the root of the mean square of what is wrong is less than the library's."""
    rng = np.random.default_rng(0)
    shapes = (2, 16, 16, 64), (3, 3, 64, 64), (2, 16, 16, 64)
    exact = [rng.standard_normal(shape) for shape in shapes]
    given = [jnp.asarray(x, jnp.float32) for x in exact]

    def found(function):
        def both(x, kernel, back):
            y, vjp = jax.vjp(
                lambda x, kernel: function(
                    x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
                ),
                x,
                kernel,
            )
            return y, *vjp(back)

        compiled = jax.jit(both).lower(*given).compile()
        return compiled.cost_analysis()["flops"], compiled(*given)

    flops, ours = found(convolve)
    plain, theirs = found(jax.lax.conv_general_dilated)
    assert flops < plain / 1.8

    def by_numpy(x, kernel, back):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y, x_back, kernel_back = np.zeros_like(back), np.zeros_like(x), np.zeros_like(kernel)
        for i, j in np.ndindex(3, 3):
            seen = x[:, i : i + 16, j : j + 16]
            y += seen @ kernel[i, j]
            kernel_back[i, j] = np.tensordot(seen, back, ((0, 1, 2), (0, 1, 2)))
            x_back[:, i : i + 16, j : j + 16] += back @ kernel[i, j].T
        return y, x_back[:, 1:-1, 1:-1], kernel_back

    for right, mine, other in zip(by_numpy(*(np.float64(x) for x in given)), ours, theirs):
        wrong = [np.sqrt(np.mean((np.float64(x) - right) ** 2)) for x in (mine, other)]
        assert wrong[0] < wrong[1]


def test_others_are_left_alone():
    """Groups of several channels and dilated kernels are the library's, bit for bit."""
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    for groups, dilation in ((1, 2), (2, 1), (4, 2)):
        rest = dict(feature_group_count=groups, kernel_dilation=dilation)
        ours, theirs = (kind(4, 4, (3, 3), **rest, rngs=nnx.Rngs(0)) for kind in (Conv, nnx.Conv))
        np.testing.assert_array_equal(ours(x), theirs(x))
