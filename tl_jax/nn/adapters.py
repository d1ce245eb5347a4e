# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters of one layer: a few new numbers beside a kernel that stays as it is.

    layer.lora = LoRA(layer, Adapter("lora", rank=8), rngs=rngs)
    layer.__class__ = adapted(type(layer), "lora")         # the layer's call goes through its adapter from now on

An adapter works on activations: the kernel itself is only read, so that no gradient of it is ever asked for. Adapters
are float32 and give what they were given, and begin as the identity.
"""

import functools
import math
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.config import Adapter
from tl_jax.nn.embed import Embed
from tl_jax.nn.functions import dropout
from tl_jax.nn.linear import Linear

# By exact type: a subclass may use its kernel in ways of its own.
LAYERS = (nnx.Linear, nnx.Conv, Embed)


@functools.cache
def adapted(base: type, name: str) -> type:
    """The class of a layer of class `base` whose calls go through its attribute `name`; one class for all of them, as
    two networks are the same program only if their classes are."""

    def call(self, x):
        return getattr(self, name)(self, functools.partial(base.__call__, self), x)

    body = {"__call__": call, "base": base, "adapter": name}
    return types.new_class(f"Adapted{base.__name__}", (base,), {}, lambda names: names.update(body))


def kernel_of(layer: nnx.Module) -> nnx.Param:
    """[..., inputs, outputs] of a dense or convolutional layer, [words, width] of a table."""
    return layer.embedding if isinstance(layer, nnx.Embed) else layer.kernel


class LoRA(nnx.Module):
    """y + scale · b(a(x)), with b zero at first (Hu et al. 2021), as PEFT has it.

    The scale is alpha / rank, or alpha / √rank (rsLoRA, Kalajdzievski 2023). `a` is a layer of the base's own kind, for
    a convolution one of its size and strides. With the kind `dora` the kernel W + scale · a b is rescaled, column by
    column, to a learned magnitude too (DoRA, Liu et al. 2024); its norm is a constant to the gradient.

    Dropout is that of the input of `a`, and of all that DoRA adds to the layer's own output; adapters that share their
    `a` see one mask, as PEFT's one module does.

    Args:
      layer: the one to adapt, of a type in LAYERS.
      shared: the `a` of another adapter, where one published kernel is several here.
    """

    name = "lora"

    def __init__(self, layer: nnx.Module, spec: Adapter, *, rngs: nnx.Rngs, shared: nnx.Module | None = None):
        kernel, table = kernel_of(layer)[...], isinstance(layer, nnx.Embed)
        self.spec = spec
        self.a = _first(layer, spec.rank, rngs) if shared is None else shared
        # The key is handed to `a`, of which there is one where there is one mask.
        self.a.draws = spec.dropout > 0
        # Of a table it is `a` that starts at zero, which a lookup would keep at zero together with a zero `b`.
        init = nnx.initializers.normal(1.0) if table else nnx.initializers.zeros_init()
        self.b = Linear(spec.rank, kernel.shape[-1], use_bias=False, kernel_init=init, rngs=rngs)
        if spec.kind == "dora":
            self.magnitude = nnx.Param(norms(kernel))

    @property
    def scale(self) -> float:
        """What the change is multiplied with."""
        alpha = self.spec.rank if self.spec.alpha is None else self.spec.alpha
        return alpha / (math.sqrt(self.spec.rank) if self.spec.use_rslora else self.spec.rank)

    def __call__(self, layer: nnx.Module, run: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """What the layer gives for `x`, in the dtype that the layer alone would give."""
        seen = dropout(x, self.spec.dropout, getattr(self.a, "key", None))
        if self.spec.kind == "lora" and seen is x and _pays(layer, x):
            y = _product(x, layer.kernel[...], self.a.kernel[...], self.b.kernel[...], self.scale)
            return y if layer.bias is None else y + layer.bias[...]
        y = run(x)
        change = self.scale * self.b(self.a(seen))
        if self.spec.kind == "lora":
            return y + change.astype(y.dtype)
        bias = 0.0 if layer.bias is None else layer.bias[...]
        gain = self.magnitude[...] / jax.lax.stop_gradient(self._norms(layer))
        if seen is x:
            return (gain * (y - bias + change) + bias).astype(y.dtype)
        return (y + (gain - 1) * (run(seen) - bias) + gain * change).astype(y.dtype)

    def merged(self, layer: nnx.Module) -> dict[str, jax.Array]:
        """The kernel, float32, with which the layer alone does the same."""
        a, b = self._factors()
        whole = kernel_of(layer)[...].astype(jnp.float32)
        whole = whole + self.scale * jnp.matmul(a, b, precision="highest").reshape(whole.shape)
        if self.spec.kind == "dora":
            whole = whole * (self.magnitude[...] / norms(whole))
        return {"embedding" if isinstance(layer, nnx.Embed) else "kernel": whole}

    def _factors(self) -> tuple[jax.Array, jax.Array]:
        """float32 [inputs, rank] and [rank, outputs]; a convolution's inputs are all that its window sees."""
        a = kernel_of(self.a)[...].astype(jnp.float32)
        return a.reshape(-1, self.spec.rank), self.b.kernel[...].astype(jnp.float32)

    def _norms(self, layer: nnx.Module) -> jax.Array:
        """`norms(W + scale · a b)` as |w|² + 2 scale w·ab + scale² |ab|², so that the sum is never made."""
        a, b = self._factors()
        w = layer.kernel[...].astype(jnp.float32).reshape(-1, b.shape[-1])
        rest = self.scale * jnp.sum(b * (2 * a.T @ w + self.scale * (a.T @ a) @ b), axis=0)
        return jnp.sqrt(jnp.maximum(jnp.sum(w * w, axis=0) + rest, jnp.finfo(jnp.float32).tiny))


class IA3(nnx.Module):
    """A layer's outputs times a learned vector, or its inputs where it is a `feedforward` one (Liu et al. 2022)."""

    name = "ia3"

    def __init__(self, layer: nnx.Module, spec: Adapter, *, rngs: nnx.Rngs):
        self.spec = spec
        self.scale = nnx.Param(jnp.ones(kernel_of(layer).shape[-2 if spec.feedforward else -1]))

    def __call__(self, layer: nnx.Module, run: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """What the layer gives for `x`, scaled."""
        if self.spec.feedforward:
            return run((x * self.scale[...]).astype(x.dtype))
        y = run(x)
        return (y * self.scale[...]).astype(y.dtype)

    def merged(self, layer: nnx.Module) -> dict[str, jax.Array]:
        """Kernel and bias, float32, with which the layer alone does the same."""
        scale, kernel = self.scale[...], layer.kernel[...].astype(jnp.float32)
        if self.spec.feedforward:
            return {"kernel": kernel * scale[:, None]}
        bias = {} if layer.bias is None else {"bias": layer.bias[...].astype(jnp.float32) * scale}
        return {"kernel": kernel * scale, **bias}


class Bottleneck(nnx.Module):
    """y + up(gelu(down(y))) after a layer, with `up` zero at first (Houlsby et al. 2019).

    It bends what it is given, so no kernel can take it in.
    """

    name = "bottleneck"

    def __init__(self, layer: nnx.Module, spec: Adapter, *, rngs: nnx.Rngs):
        width, zeros = kernel_of(layer).shape[-1], nnx.initializers.zeros_init()
        self.spec = spec
        self.down = Linear(width, spec.rank, rngs=rngs)
        self.up = Linear(spec.rank, width, kernel_init=zeros, rngs=rngs)

    def __call__(self, layer: nnx.Module, run: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """What the layer gives for `x`, and the change."""
        y = run(x)
        return y + self.up(jax.nn.gelu(self.down(y))).astype(y.dtype)


KINDS = {"lora": LoRA, "dora": LoRA, "ia3": IA3, "bottleneck": Bottleneck}


def _pays(layer: nnx.Module, x: jax.Array) -> bool:
    """Whether to fold a LoRA into its kernel first: in float32, as a kernel in few bits would swallow the change, and
    for more rows than the kernel has, so that folding is the smaller product."""
    if not isinstance(layer, nnx.Linear) or not x.dtype == layer.kernel.dtype == jnp.float32:
        return False
    return x.size // x.shape[-1] >= max(layer.kernel.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _product(x, kernel, a, b, scale):
    """The product of x and kernel + scale · a b, with two thin products less than x @ kernel + scale · x a b takes.

    Folded anew in the backward pass, so that nothing of the kernel's size is kept.
    """
    return x @ (kernel + scale * (a @ b))


def _product_forward(x, kernel, a, b, scale):
    return _product(x, kernel, a, b, scale), (x, kernel, a, b)


def _product_backward(scale, kept, given):
    x, kernel, a, b = kept
    rows, slope = x.reshape(-1, x.shape[-1]), given.reshape(-1, given.shape[-1])
    change_a = scale * rows.T @ (slope @ b.T)
    change_b = scale * (rows @ a).T @ slope
    # Of a kernel that does not train nobody asks for the second, and the compiler drops it.
    return given @ (kernel + scale * (a @ b)).T, rows.T @ slope, change_a, change_b


_product.defvjp(_product_forward, _product_backward)


def norms(kernel: jax.Array) -> jax.Array:
    """float32[outputs]: the length of the kernel's part of each output."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=tuple(range(kernel.ndim - 1))))


def _first(layer: nnx.Module, rank: int, rngs: nnx.Rngs) -> nnx.Module:
    """The layer from the base's inputs to `rank` numbers."""
    if isinstance(layer, nnx.Embed):
        return Embed(layer.num_embeddings, rank, embedding_init=nnx.initializers.zeros_init(), rngs=rngs)
    # Uniform within ± 1 / √inputs: PyTorch's default, and so PEFT's.
    init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    if isinstance(layer, nnx.Linear):
        return Linear(layer.in_features, rank, use_bias=False, kernel_init=init, rngs=rngs)
    return nnx.Conv(
        layer.in_features,
        rank,
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        input_dilation=layer.input_dilation,
        kernel_dilation=layer.kernel_dilation,
        use_bias=False,
        kernel_init=init,
        conv_general_dilated=layer.conv_general_dilated,
        rngs=rngs,
    )
