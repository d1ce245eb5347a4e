# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""res8 and res8-narrow, keyword spotters of residual convolutions (Tang & Lin 2017).

    config = Config.from_published({"architecture": "res8", "parameters": 110307})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_features": mfcc})     # float[B, 101, 40]

Checked against two published networks with their outputs.
"""

# B batch, T frames, M coefficients, H height, W width, D width of the network

import dataclasses
from typing import Any

import jax
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn import conv
from tl_jax.nn.convolution import Conv
from tl_jax.nn.norm import BatchNorm
from tl_jax.nn.residual import drop_path
from tl_jax.weights.rules import CONV, LINEAR, SAME, Rule, Source, dense, published_fields

MODEL_TYPES = ("res8",)
INPUTS = ("input_features",)
POOLS = ("pooler",)
HEADS = {"res8": ("classification", {})}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    width: int = 45

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`, which describes the network in words: `res8`, or `res8-narrow` of
        width 19."""
        narrow = str(data.get("architecture", "")).startswith("res8-narrow")
        return published_fields(cls, {"width": 19 if narrow else 45, **data})

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholders in the key map: blocks, and both their convolutions."""
        return [{"b": b, "i": i, "n": 2 * b + i + 1} for b in range(3) for i in range(2)]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read: there is nothing."""
        return self


def _conv(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Conv:
    init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    return Conv(inputs, outputs, (3, 3), padding=1, use_bias=False, kernel_init=init, rngs=rngs)


class Norm(BatchNorm):
    """BatchNorm without scale and bias."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, rngs=rngs)
        self.scale = self.bias = None
        self.use_scale = self.use_bias = False


class Stem(nnx.Module):
    """From coefficients to the first feature map, averaged over 4 frames and 3 coefficients."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv = _conv(1, width, rngs)

    def __call__(self, x_BTM, context: Context):
        """float[B, T, M] -> float[B, T / 4, M / 3, D] in the parameters' dtype."""
        x_BTMD = jax.nn.relu(self.conv(x_BTM[..., None].astype(self.conv.kernel.dtype)))
        return nnx.avg_pool(x_BTMD, (4, 3), (4, 3))


class Block(nnx.Module):
    """Two convolutions, each with BatchNorm behind the ReLU, and what came in added before the second norm."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.convs = nnx.List([_conv(width, width, rngs) for _ in range(2)])
        self.norms = nnx.List([Norm(width, rngs=rngs) for _ in range(2)])
        self.drop_path = 0.0

    def __call__(self, x_BHWD, context: Context):
        """(map, sum that it is the norm of) -> the same, one block on; both float[B, H, W, D]."""
        x_BHWD, sum_BHWD = x_BHWD if isinstance(x_BHWD, tuple) else (x_BHWD, x_BHWD)
        y_BHWD = self.norms[0](jax.nn.relu(self.convs[0](x_BHWD)), context.mode.batch_stats)
        sum_BHWD = drop_path(jax.nn.relu(self.convs[1](y_BHWD)), self.drop_path, context.key) + sum_BHWD
        return self.norms[1](sum_BHWD, context.mode.batch_stats), sum_BHWD


class Pool(conv.Pool):
    """Mean over frames and coefficients; a stage without parameters."""

    def __call__(self, x, context: Context):
        """(map float[B, H, W, D], sum) -> `last_hidden_state`, the map, and `pooler_output` float[B, D]."""
        return super().__call__(x[0], context)


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` to `blocks/2`, and `pool`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config, self.width = config, config.width
        self.stem = Stem(config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config.width, rngs=rngs) for _ in range(3)])
        self.pool = Pool()
        self.chains = nnx.static({"": ("stem", *(f"blocks/{i}" for i in range(3)), "pool")})

    def begin(self, chain, batch, done) -> Carry:
        """`input_features` float[B, T, M], of any size from 4 frames and 3 coefficients on.

        Raises:
          UserError: fewer of them.
        """
        x_BTM = batch["input_features"]
        if x_BTM.ndim != 3 or x_BTM.shape[1] < 4 or x_BTM.shape[2] < 3:
            raise UserError("batch", f"input_features are {list(x_BTM.shape)}, [B, frames, coefficients] was expected")
        return Carry(x_BTM, {}, {})


_STATS = (("running_mean", "mean"), ("running_var", "var"))
SOURCES = {
    "torch": Source(
        rules=(
            Rule("conv0.weight", "stem/conv/kernel", CONV),
            Rule("conv{n}.weight", "blocks/{b}/convs/{i}/kernel", CONV),
            *(Rule(f"bn{{n}}.{theirs}", f"blocks/{{b}}/norms/{{i}}/{ours}", SAME) for theirs, ours in _STATS),
            *dense([("output", "head")], LINEAR),
        ),
        # Scales of an older form that the published code no longer reads.
        ignored=(r"bn\d\.num_batches_tracked", r"scale\d\.scale"),
        optional=(r"output\..*",),
    )
}
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
