# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Silero VAD for sound of 16 kHz (Silero team 2025): a spectrum, four convolutions and an LSTM over chunks of 32 ms.

    config = Config.from_published({"architecture": "Silero VAD"})
    outputs = Backbone(config, rngs=nnx.Rngs(0))({"input_values": samples})    # float[B, samples]

`speech_prob` float[B, chunks] says how likely each chunk holds speech. Checked against the published network's outputs.
"""

# B batch, T samples, K chunks, W samples of a chunk with its context, F frames, C channels, D width

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry, Context
from tl_jax.core.errors import UserError
from tl_jax.nn.linear import Linear
from tl_jax.weights.rules import LINEAR, SAME, Layout, Rule, Source, dense, published_fields

MODEL_TYPES = ("Silero VAD",)
INPUTS = ("input_values", "attention_mask")
POOLS = ("mean", "last")
HEADS: dict = {}

_CHUNK, _BEFORE = 512, 64
_FRAME, _HOP = 256, 128
_CONVS = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))


@dataclasses.dataclass(frozen=True)
class Config:
    """The published network has one size.

    Attributes:
      detector: whether the layer that tells speech is built.
    """

    detector: bool = True

    @classmethod
    def from_published(cls, data: dict[str, Any]) -> "Config":
        """The config of a published `config.json`, which describes the network in words."""
        return published_fields(cls, data)

    def indices(self) -> list[dict[str, int]]:
        """Values of the placeholder in the key map: convolutions."""
        return [{"i": i} for i in range(len(_CONVS))]

    def without(self, pool: str) -> "Config":
        """Without what a head with this pooling does not read."""
        return dataclasses.replace(self, detector=pool == "")


class Stem(nnx.Module):
    """The magnitudes of each chunk's spectrum; the waves that measure it are published with the weights."""

    def __init__(self, *, rngs: nnx.Rngs):
        kernel = nnx.initializers.normal(_FRAME**-0.5)(rngs.params(), (_FRAME, 1, 2 * (_FRAME // 2 + 1)))
        self.kernel = nnx.Param(kernel)

    def __call__(self, x_BKW, context: Context):
        """float[B, K, W] -> float[B, K, F, C] in the parameters' dtype."""
        batch, chunks, width = x_BKW.shape
        x_NW = jnp.pad(x_BKW.reshape(-1, width), [(0, 0), (0, _BEFORE)], mode="reflect").astype(self.kernel.dtype)
        waves_NFC = jax.lax.conv_general_dilated(
            x_NW[..., None], self.kernel[...], (_HOP,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        real, imaginary = jnp.split(waves_NFC, 2, axis=-1)
        return jnp.sqrt(real**2 + imaginary**2).reshape(batch, chunks, waves_NFC.shape[1], -1)


class Block(nnx.Conv):
    """A convolution over the frames of each chunk."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        super().__init__(inputs, outputs, (3,), strides=(stride,), padding=1, rngs=rngs)

    def __call__(self, x_BKFC, context: Context):
        """float[B, K, F, inputs] -> float[B, K, F / stride, outputs]."""
        return jax.nn.relu(super().__call__(x_BKFC))


class Memory(nnx.Module):
    """A stage: the LSTM (Hochreiter & Schmidhuber 1997) over chunks, from a state of zeros."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = {"kernel_init": nnx.initializers.uniform(width**-0.5), "rngs": rngs}
        self.inputs = Linear(width, 4 * width, **init)
        self.state = Linear(width, 4 * width, **init)

    def __call__(self, x_BKFD, context: Context):
        """float[B, K, 1, D] -> float[B, K, D]."""

        def step(carry, gates_BE):
            cell_BD, out_BD = carry
            gate, forget, new, show = jnp.split(gates_BE + self.state(out_BD), 4, axis=-1)
            cell_BD = jax.nn.sigmoid(forget) * cell_BD + jax.nn.sigmoid(gate) * jnp.tanh(new)
            out_BD = jax.nn.sigmoid(show) * jnp.tanh(cell_BD)
            return (cell_BD, out_BD), out_BD

        gates_KBE = self.inputs(x_BKFD[:, :, 0]).swapaxes(0, 1)
        zeros_BD = jnp.zeros((gates_KBE.shape[1], gates_KBE.shape[2] // 4), gates_KBE.dtype)
        return jax.lax.scan(step, (zeros_BD, zeros_BD), gates_KBE)[1].swapaxes(0, 1)


class Detector(nnx.Linear):
    """A stage: how likely each chunk holds speech."""

    def __call__(self, x_BKD, context: Context):
        """float[B, K, D] -> `last_hidden_state`, the same, and `speech_prob` float32[B, K]."""
        scores_BK = super().__call__(jax.nn.relu(x_BKD))[..., 0].astype(jnp.float32)
        return {"last_hidden_state": x_BKD, "speech_prob": jax.nn.sigmoid(scores_BK)}


class Backbone(chain.Backbone):
    """Stages `stem`, `blocks/0` to `blocks/3`, `memory` and, where the config has it, `detector`."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config, self.width = config, _CONVS[-1][1]
        self.stem = Stem(rngs=rngs)
        self.blocks = nnx.List([Block(*sizes, rngs=rngs) for sizes in _CONVS])
        self.memory = Memory(self.width, rngs=rngs)
        names = ("stem", *(f"blocks/{i}" for i in range(len(_CONVS))), "memory")
        if config.detector:
            self.detector = Detector(self.width, 1, rngs=rngs)
            names += ("detector",)
        self.chains = nnx.static({"": names})

    def begin(self, chain, batch, done) -> Carry:
        """`input_values` float[B, T] in -1 to 1, filled up with zeros to whole chunks of 512 samples; those of which
        `attention_mask` [B, T] holds less than one sample do not count.

        Raises:
          UserError: another form.
        """
        x_BT = batch["input_values"]
        if x_BT.ndim != 2:
            raise UserError("batch", f"input_values are {list(x_BT.shape)}, [B, samples] was expected")
        short = -x_BT.shape[1] % _CHUNK
        mask_BT = jnp.pad(batch.get("attention_mask", jnp.ones(x_BT.shape, jnp.int32)), [(0, 0), (0, short)])
        x_BT = jnp.pad(x_BT, [(0, 0), (_BEFORE, short)])
        starts = jnp.arange((x_BT.shape[1] - _BEFORE) // _CHUNK)[:, None] * _CHUNK
        mask_BK = mask_BT.reshape(len(mask_BT), -1, _CHUNK).max(axis=2)
        return Carry(x_BT[:, starts + jnp.arange(_CHUNK + _BEFORE)], {"attention_mask": mask_BK}, {})


# `LINEAR` turns all axes around, which is also what a convolution over time needs: [out, in, K] <-> [K, in, out].
_POINT = Layout("[1, D, 1] to [D, 1]", lambda ts: (ts[0][..., 0].T,), lambda ps: (ps[0].T[..., None],))
SOURCES = {
    "torch": Source(
        rules=(
            Rule("model.stft.forward_basis_buffer", "stem/kernel", LINEAR),
            *dense([("model.encoder.{i}.reparam_conv", "blocks/{i}")]),
            Rule("model.decoder.rnn.weight_ih", "memory/inputs/kernel", LINEAR),
            Rule("model.decoder.rnn.bias_ih", "memory/inputs/bias", SAME),
            Rule("model.decoder.rnn.weight_hh", "memory/state/kernel", LINEAR),
            Rule("model.decoder.rnn.bias_hh", "memory/state/bias", SAME),
            *dense([("model.decoder.decoder.2", "detector")], _POINT),
        ),
        optional=(r"model\.decoder\.decoder\..*",),
    )
}
SHARDING = ()  # `fsdp` alone; nothing here is worth splitting over `tensor`.
