# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Networks small enough to try every combination on, with everything that can go wrong in a large one.

model = toys.Net(rate=0.5)                                   # stem, blocks/0, head
objective, params = toys.objective(model, Plan(preset="linear_probe"))
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tl_jax.core import chain
from tl_jax.core.chain import Carry
from tl_jax.models import bert
from tl_jax.nn.functions import dropout
from tl_jax.nn.norm import BatchNorm
from tl_jax.plan.resolve import resolve
from tl_jax.train.objective import ChainObjective


class Layer(nnx.Module):
    """Linear, BatchNorm, tanh, dropout."""

    def __init__(self, width: int, rate: float, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.norm = BatchNorm(width, rngs=rngs)
        self.rate = rate

    def __call__(self, x, context):
        """float[B, width] -> float[B, width]."""
        return dropout(jnp.tanh(self.norm(self.linear(x), context.mode.batch_stats)), self.rate, context.key)


class Head(nnx.Linear):
    """Logits of the feature, or of the pooled output."""

    def __call__(self, x, context):
        """float[B, D] -> `logits`."""
        return {"logits": super().__call__(x["pooler_output"] if isinstance(x, dict) else x)}


class Net(chain.Backbone):
    """One chain over `x` float[B, width], with running statistics in every stage but the head."""

    def __init__(self, *, blocks: int = 1, width: int = 4, classes: int = 3, rate: float = 0.0):
        rngs = nnx.Rngs(0)
        self.stem = Layer(width, rate, rngs=rngs)
        self.blocks = nnx.List([Layer(width, rate, rngs=rngs) for _ in range(blocks)])
        self.chains = nnx.static({"": ("stem", *(f"blocks/{number}" for number in range(blocks)))})
        self.add_stage("head", Head(width, classes, rngs=rngs))

    def begin(self, chain, batch, done):
        """`x`."""
        return Carry(batch["x"], {}, {})


class Mixer(nnx.Module):
    """x + linear(x), and what the other chain left."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x, context):
        """float[B, width] -> float[B, width]."""
        return x + self.linear(x) + context.batch.get("encoded", 0.0)


class TwoChains(chain.Backbone):
    """An encoder over `x` and a decoder over `y` that reads it."""

    reads = {"decoder": ("encoder",)}

    def __init__(self, *, width: int = 4):
        rngs = nnx.Rngs(0)
        self.encoder = nnx.List([Mixer(width, rngs=rngs) for _ in range(2)])
        self.decoder = nnx.List([Mixer(width, rngs=rngs) for _ in range(2)])
        self.chains = nnx.static({name: (f"{name}/0", f"{name}/1") for name in ("encoder", "decoder")})

    def begin(self, chain, batch, done):
        """The encoder's output is an invariant of the decoder."""
        if chain == "encoder":
            return Carry(batch["x"], {}, {})
        return Carry(batch["y"], {"encoded": done["encoder"]}, {})


def small_bert(layers: int = 2, width: int = 8, rate: float = 0.1, classes: int = 3) -> bert.Backbone:
    """A BERT of 50 words with a pooling layer and a head."""
    rngs = nnx.Rngs(0)
    config = bert.Config(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=4 * width,
        hidden_dropout_prob=rate,
        attention_probs_dropout_prob=rate,
        max_position_embeddings=64,
    )
    model = bert.Backbone(config, rngs=rngs)
    model.add_stage("head", Head(width, classes, rngs=rngs))
    return model


def tokens(count: int = 4, length: int = 6, classes: int = 3) -> dict[str, np.ndarray]:
    """A batch of ids with padding, and labels."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, length + 1, count)
    return {
        "input_ids": rng.integers(0, 50, (count, length)).astype(np.int32),
        "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int32),
        "label": rng.integers(0, classes, count).astype(np.int32),
    }


def vectors(count: int = 8, width: int = 4, classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch for `Net`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)).astype(np.float32)
    return {"x": x, "label": rng.integers(0, classes, count).astype(np.int32)}


def cross_entropy(outputs, batch):
    """A task's loss: float32[B], no metrics."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], batch["label"]), {}


def objective(model: chain.Backbone, plan, loss_of=cross_entropy) -> tuple[ChainObjective, dict[str, jax.Array]]:
    """The loss under a plan, and all leaves."""
    chains, params = chain.split(model)
    resolved = resolve(plan, chains, params, 0.0, getattr(model, "reads", None))
    return ChainObjective(model, chains, resolved, loss_of), params
