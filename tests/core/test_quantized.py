# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in 8 and 4 bits against NumPy in float64, and what a compiled program keeps of them."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tl_jax.core import barriers, quantized
from tl_jax.core.quantized import BLOCK, LEVELS

_SHAPES = [((128, 24), 0), ((100, 24), 0), ((3, 3, 16, 8), 0), ((30, 128), 1), ((30, 70), 1)]


def numbers(shape) -> np.ndarray:
    """float32, normal, in columns and rows of different sizes, with a column and a row of zeros."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1]))
    array[..., 3], array[2] = 0, 0
    return array.astype(np.float32)


def in_blocks(array: np.ndarray, axis: int, length: int | None):
    """float64 [blocks, numbers of a block]: every group of numbers that share a scale, filled up with zeros."""
    lines = array.reshape(-1, array.shape[-1]).astype(np.float64)
    lines = lines.T if axis == 0 else lines
    length = length or lines.shape[1]
    filled = np.pad(lines, ((0, 0), (0, -lines.shape[1] % length)))
    return filled.reshape(-1, length), lines.shape, filled.shape


def expected(array: np.ndarray, kind: str, axis: int) -> np.ndarray:
    """What is left of the array, by its definition."""
    blocks, shape, filled = in_blocks(array, axis, BLOCK if kind == "nf4" else None)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    ratios = np.divide(blocks, largest, out=np.zeros_like(blocks), where=largest > 0)
    if kind == "int8":
        found = np.round(ratios * 127) / 127
    else:
        levels = np.array(LEVELS, np.float64)
        found = levels[np.abs(ratios[..., None] - levels).argmin(axis=-1)]
    lines = (found * largest).reshape(filled)[:, : shape[1]]
    return (lines.T if axis == 0 else lines).reshape(array.shape)


def test_the_levels_are_quantiles_of_a_normal_distribution():
    """Eight above zero and seven below it, evenly far in probability, scaled to 1 (QLoRA, appendix E)."""
    last, quantile = 0.9677083, statistics.NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(last, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(last, 0.5, 8)[:-1]]
    found = np.sort([*below, 0.0, *above]) / max(above)
    # The paper prints its `last` with seven digits.
    np.testing.assert_allclose(LEVELS, found, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("shape,axis", _SHAPES)
def test_what_is_left_of_an_array_is_as_defined(shape, axis, kind):
    """The nearest multiple of a scale, or level of a block; whole columns or rows, filled blocks, zeros."""
    array = numbers(shape)
    kept = jax.jit(functools.partial(quantized.quantize, kind=kind, axis=axis))(array)
    found = jax.jit(quantized.whole)(kept)
    assert found.shape == array.shape and found.dtype == jnp.float32
    # Two roundings of float32; another code would be off by a hundredth and more.
    np.testing.assert_allclose(found, expected(array, kind, axis), rtol=3e-7, atol=0)


@pytest.mark.parametrize("axis,shape", [(0, (100, 24)), (1, (30, 70))])
def test_two_codes_share_a_byte(axis, shape):
    """The first half of a block in the low bits, the second in the high ones; one scale a block."""
    kept = quantized.quantize(numbers(shape), "nf4", axis)
    assert kept.codes.dtype == jnp.uint8 and kept.scales.dtype == jnp.float32
    assert kept.codes.shape == ((2, 32, 24) if axis == 0 else (30, 2, 32))
    assert kept.scales.shape == ((2, 1, 24) if axis == 0 else (30, 2, 1))
    blocks, _, _ = in_blocks(numbers(shape), axis, BLOCK)
    codes = np.abs(blocks[0][:, None] / np.abs(blocks[0]).max() - np.array(LEVELS)).argmin(axis=1)
    first = np.asarray(kept.codes[0, :, 0] if axis == 0 else kept.codes[0, 0])
    np.testing.assert_array_equal(np.concatenate([first & 15, first >> 4]), codes)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_tiny_numbers_stay_finite(kind):
    """A column whose scale is rounded to nothing, or to a number that is not exact; nowhere is there a NaN."""
    array = np.full((64, 4), 1e-45, np.float32) * np.array([0, 1, 190, 1e7], np.float32)
    with jax.debug_nans(True):
        found = np.asarray(quantized.whole(quantized.quantize(array, kind, 0)))
    assert (np.abs(found) <= 2 * np.abs(array).max(axis=0)).all()


# Eight layers with a small change that trains, as LoRA's.
_LAYERS, _WIDTH, _ROWS = 8, 256, 16


def loss(trained, frozen, x, dtype=None):
    """float[]: frozen kernels, transposed before they are used, and trained factors beside them."""

    def layer(leaves, x):
        kernel = leaves["kernel"] if dtype is None else leaves["kernel"].astype(dtype)
        return jnp.tanh(x @ kernel.T + x @ leaves["a"] @ leaves["b"])

    for own, kernel in zip(trained, frozen):
        x = quantized.run(layer, {**own, "kernel": kernel}, x)
    return jnp.sum(x)


def arguments(kind, make=np.zeros):
    """Factors, kernels in this form, inputs."""
    trained = [{"a": make((_WIDTH, 2)), "b": make((2, _WIDTH))} for _ in range(_LAYERS)]
    trained = jax.tree.map(jnp.float32, trained)
    frozen = [jnp.float32(make((_WIDTH, _WIDTH))) for _ in range(_LAYERS)]
    if kind is not None:
        frozen = [quantized.quantize(kernel, kind, 0) for kernel in frozen]
    return trained, frozen, jnp.float32(make((_ROWS, _WIDTH)))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_gradients_are_those_of_the_whole_arrays(kind):
    """To the last bits: what is made again is what there was."""
    rng = np.random.default_rng(0)
    trained, frozen, x = arguments(kind, lambda shape: rng.normal(size=shape) / np.sqrt(shape[0]))
    gradient = jax.jit(jax.value_and_grad(loss))
    ours = gradient(trained, frozen, x)
    theirs = gradient(trained, [quantized.whole(kernel) for kernel in frozen], x)
    # Sums of 256 terms in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_backward_pass_keeps_codes_and_no_whole_array(dtype):
    """Of the arrays as large as a kernel, it is handed the codes alone, whatever form the layer uses."""
    abstract = jax.eval_shape(lambda: arguments("int8"))

    def backward(trained, frozen, x):
        return jax.vjp(lambda trained: loss(trained, frozen, x, dtype), trained)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, *abstract))
    large = {str(leaf.dtype) for leaf in kept if leaf.size >= _WIDTH**2}
    assert large == {"int8"}


def temporaries(function, kind) -> int:
    """Bytes of the compiled function."""
    abstract = jax.eval_shape(lambda: arguments(kind))
    options = barriers.compiler_options()
    return jax.jit(function, compiler_options=options).lower(*abstract).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_few_kernels_are_whole_at_a_time(kind):
    """A step of eight layers takes the memory of the unquantised one and at most three kernels; so does evaluation."""
    kernel = 4 * _WIDTH**2
    for function in (jax.value_and_grad(loss), loss):
        assert temporaries(function, kind) <= temporaries(function, None) + 3 * kernel


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_lookup_makes_no_whole_table(kind):
    """Rows of a table are looked up in its codes: the compiler puts the two together."""
    abstract = jax.eval_shape(lambda: quantized.quantize(jnp.zeros((5000, 128)), kind, 1))
    ids = jax.ShapeDtypeStruct((8, 4), jnp.int32)

    def lookup(table, ids):
        return quantized.run(lambda leaves, ids: jnp.take(leaves["table"], ids, axis=0), {"table": table}, ids)

    options = barriers.compiler_options()
    memory = jax.jit(lookup, compiler_options=options).lower(abstract, ids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 100_000 < 5000 * 128


@pytest.mark.parametrize(
    "kind,axis,shape,spec,codes,scales",
    [
        ("int8", 0, (128, 64), (None, "tensor"), (None, "tensor"), (None, "tensor")),
        ("int8", 0, (128, 64), ("tensor",), ("tensor", None), (None, None)),
        ("int8", 1, (32, 64), ("tensor", "fsdp"), ("tensor", "fsdp"), ("tensor", None)),
        ("nf4", 0, (128, 64), ("tensor", "fsdp"), ("tensor", None, "fsdp"), ("tensor", None, "fsdp")),
        ("nf4", 0, (64, 64), ("tensor", "fsdp"), (None, None, "fsdp"), (None, None, "fsdp")),
        ("nf4", 1, (32, 128), ("fsdp", None), ("fsdp", None, None), ("fsdp", None, None)),
        ("nf4", 0, (3, 3, 64, 8), (None, None, "fsdp", "tensor"), (None, None, "tensor"), (None, None, "tensor")),
    ],
)
def test_codes_lie_where_the_array_would(kind, axis, shape, spec, codes, scales):
    """Blocks go along with their axis; what does not divide is whole on every device."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    kept = jax.eval_shape(
        functools.partial(quantized.quantize, kind=kind, axis=axis), jax.ShapeDtypeStruct(shape, "f4")
    )
    places = quantized.shardings(kept, jax.sharding.NamedSharding(mesh, PartitionSpec(*spec)))
    assert places.codes.spec == PartitionSpec(*codes) and places.scales.spec == PartitionSpec(*scales)
