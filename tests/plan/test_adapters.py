# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which kernels get adapters, what then trains and what it costs; test_peft.py compares the arithmetic with PEFT's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from flax import nnx

from tl_jax import config
from tl_jax.config import Adapter, Experiment, Model, Plan, Train
from tl_jax.core import barriers, chain
from tl_jax.core.chain import EVAL
from tl_jax.core.errors import UserError
from tl_jax.models import gpt2, mobilenet_v2, vit
from tl_jax.nn import adapters as nn_adapters
from tl_jax.nn.adapters import LoRA
from tl_jax.plan import adapters, cut
from tl_jax.plan.resolve import resolve
from tl_jax.train.objective import ChainObjective
from tl_jax.train.step import Step, initial_state

_QUERY_VALUE = r"blocks/\d+/attn/(query|value)/kernel"


def with_adapters(model, plan, fused=()):
    """The network with the plan's adapters."""
    adapters.install(model, adapters.choose(plan, model, fused), fused, nnx.Rngs(1))
    return model


def resolved(model, plan, weight_decay=0.0):
    """The plan in full."""
    chains, params = chain.split(model)
    return resolve(plan, chains, params, weight_decay)


@pytest.mark.parametrize(
    "spec", [Adapter("lora"), Adapter("dora"), Adapter("ia3"), Adapter("ia3", feedforward=True), Adapter("bottleneck")]
)
def test_adapters_begin_as_the_identity(spec):
    """Outputs are those without; of DoRA to the rounding of a norm divided by itself."""
    before = toys.small_bert()(toys.tokens())["logits"]
    model = with_adapters(toys.small_bert(), Plan(adapters=((r"blocks/.*/(query|down)/kernel", spec),)))
    assert len(adapters.installed(model)) == 4
    np.testing.assert_allclose(model(toys.tokens())["logits"], before, atol=1e-6)


def test_lora_begins_as_pytorch_has_it():
    """`a` uniform within ± 1 / √inputs, all of that range; `b` zero; of a table the other way round."""
    plan = Plan(adapters=(("blocks/0/attn/query/kernel", Adapter(rank=50)), ("stem/word/embedding", Adapter(rank=50))))
    _, params = chain.split(with_adapters(toys.small_bert(width=64), plan))
    a = np.asarray(params["blocks/0/attn/query/lora/a/kernel"])
    assert a.shape == (64, 50) and 0.99 / 8 < np.abs(a).max() <= 1 / 8
    # Of 3200 uniform numbers; the deviation of that deviation is below 1 %.
    np.testing.assert_allclose(a.std(), 1 / 8 / np.sqrt(3), rtol=0.03)
    assert not params["blocks/0/attn/query/lora/b/kernel"].any() and not params["stem/word/lora/a/embedding"].any()
    np.testing.assert_allclose(params["stem/word/lora/b/kernel"].std(), 1.0, rtol=0.05)


def test_the_first_pattern_that_matches_wins():
    """Each kernel has one adapter, that of the first rule, and its own rank."""
    rules = (("blocks/0/attn/query/kernel", Adapter("dora", rank=3)), (_QUERY_VALUE, Adapter("lora", rank=2)))
    chosen = adapters.choose(Plan(adapters=rules), toys.small_bert(), ())
    assert chosen.pop("blocks/0/attn/query/kernel") == Adapter("dora", rank=3)
    assert len(chosen) == 3 and set(chosen.values()) == {Adapter("lora", rank=2)}


def test_the_preset_takes_a_fused_tensor_whole():
    """Queries, keys and values of a file that holds them as one share their first layer, and so count as PEFT's do."""
    fused = [tuple(f"blocks/{i}/attn/{name}/kernel" for name in ("query", "key", "value")) for i in range(2)]
    _, params = chain.split(with_adapters(toys.small_bert(), Plan(preset="lora", rank=2), fused))
    ours = {path: leaf.size for path, leaf in params.items() if adapters.is_adapter(path)}
    assert sum(ours.values()) == 2 * (8 * 2 + 2 * 3 * 8)
    assert sum("/lora/a/" in path for path in ours) == 2 and sum("/lora/b/" in path for path in ours) == 6


def test_adapters_and_head_train_and_rules_of_the_network_do_not_reach_them():
    """A rule of `lr` or `decay` speaks of adapters only if it names them; LoRA+ is such a rule."""
    plan = Plan(
        preset="lora",
        train=("blocks/1/mlp/.*",),
        lr=(("blocks/.*", 0.5), (".*/lora/b/kernel", 16.0)),
        decay=((".*/lora/.*", 0.3), (".*", 0.1)),
    )
    found = resolved(with_adapters(toys.small_bert(), plan), plan)
    ours = {path for path in found.trained if adapters.is_adapter(path)}
    assert len(ours) == 8
    assert {path for path in found.trained if path not in ours} == {
        *(f"blocks/1/mlp/{layer}/{leaf}" for layer in ("up", "down") for leaf in ("kernel", "bias")),
        *("head/kernel", "head/bias"),
    }
    for path in found.trained:
        rate = 16.0 if "/lora/b" in path else 0.5 if "/mlp/" in path else 1.0
        assert (found.lr[path], found.decay[path]) == (rate, 0.3 if path in ours else 0.1), path
    with pytest.raises(UserError, match=r"plan\.lr: 'blocks/0/\.\*' matches nothing"):
        plan = Plan(preset="lora", lr=(("blocks/0/.*", 0.5),))
        resolved(with_adapters(toys.small_bert(), plan), plan)


def test_an_adapter_does_not_move_the_norms_around_it():
    """BatchNorm beside an adapter keeps its running statistics; what trains beside it decides, as ever."""
    plan = Plan(adapters=(("blocks/.*/kernel", Adapter()),))
    found = resolved(with_adapters(toys.Net(), plan), plan)
    assert set(found.batchnorm.values()) == {"eval"} and found.moving == ()
    assert found.cut == {"": 1}


@pytest.mark.parametrize(
    "model,rule,message",
    [
        (lambda: toys.small_bert(), ("blocks/9/.*", Adapter()), "'blocks/9/.*' matches nothing"),
        (lambda: toys.small_bert(), ("pooler/kernel", Adapter()), "pooler/kernel belongs to a Pooler"),
        (lambda: toys.small_bert(), ("stem/word/.*", Adapter("ia3")), "stem/word/embedding is a table, .* no ia3"),
        (lambda: toys.small_bert(), ("stem/word/.*", Adapter(dropout=0.1)), "is a table, which takes no dropout"),
        (lambda: vit.Backbone(vit.Config(num_hidden_layers=0), rngs=nnx.Rngs(0)), (".*", Adapter()), "to a Patches"),
        (
            lambda: mobilenet_v2.Backbone(mobilenet_v2.Config(), rngs=nnx.Rngs(0)),
            (".*depthwise.*", Adapter()),
            "depthwise.* is a convolution in groups, which takes no lora",
        ),
    ],
)
def test_what_takes_no_adapter_is_refused_by_name(model, rule, message):
    """A pattern without a kernel, a layer that uses its kernel in ways of its own, a kind the layer has no form of."""
    with pytest.raises(UserError, match=message):
        nnx.eval_shape(lambda: with_adapters(model(), Plan(adapters=(rule,))))


def test_a_network_without_queries_has_no_preset():
    """The line says what to do instead."""
    with pytest.raises(UserError, match=r"lora finds no queries and values here. Name kernels in plan\.adapters"):
        adapters.choose(Plan(preset="lora"), toys.Net(), ())


def test_what_cannot_be_merged_is_refused():
    """A bottleneck bends its input; an embedding that also predicts words would change those predictions."""
    model = with_adapters(toys.small_bert(), Plan(adapters=((r".*/out/kernel", Adapter("bottleneck")),)))
    with pytest.raises(UserError, match=r"blocks/0/attn/out/kernel \(bottleneck\)"):
        adapters.merge(model)
    small = gpt2.Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, lm_head=True)
    model = gpt2.Backbone(small, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="another layer uses it without the adapter"):
        adapters.merge(with_adapters(model, Plan(adapters=(("stem/word/embedding", Adapter()),))))


def test_magnitudes_follow_the_loaded_kernel():
    """DoRA begins with the lengths in the kernel that was read, not in the one it was built with."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    found = adapters.settled({"stem/conv/kernel": jnp.asarray(kernel), "stem/conv/lora/magnitude": jnp.zeros(5)})
    expected = np.linalg.norm(kernel.reshape(-1, 5).astype(np.float64), axis=0)
    assert set(found) == {"stem/conv/lora/magnitude"}
    np.testing.assert_allclose(found["stem/conv/lora/magnitude"], expected, rtol=1e-6)


def test_dropout_zeroes_its_share_of_what_the_adapter_reads():
    """And scales the rest, so that the expectation stays; the layer's own output sees none of it."""
    layer, eye = nnx.Linear(64, 64, rngs=nnx.Rngs(0)), jnp.eye(64)
    layer.lora = LoRA(layer, Adapter("lora", rank=64, dropout=0.25), rngs=nnx.Rngs(0))
    layer.__class__ = adapters.adapted(nnx.Linear, "lora")
    layer.lora.a.kernel.set_value(eye)
    layer.lora.b.kernel.set_value(eye)
    x = jnp.ones((1000, 64))
    plain = layer(x) - 1
    layer.lora.a.key = jax.random.key(0)
    # Two roundings of numbers of order 1.
    seen = np.asarray(layer(x) - plain).round(5)
    assert set(np.unique(seen)) == {np.float32(0), np.float32(1.33333)}
    # 64,000 draws: a deviation of 0.0017.
    assert abs((seen == 0).mean() - 0.25) < 0.007


@pytest.mark.parametrize("rows", [(2, 5), (3, 40)], ids=["beside", "folded"])
def test_gradients_are_those_of_the_formula(rows):
    """Of the input, the factors, the bias and a kernel that trains too, whether there are fewer rows than the kernel
    has or more, in which case the factors are folded into it first. Sums of up to 120 products in another order."""
    layer = nnx.Linear(12, 16, rngs=nnx.Rngs(0))
    layer.lora = LoRA(layer, Adapter("lora", rank=3, alpha=6.0), rngs=nnx.Rngs(1))
    layer.__class__ = adapters.adapted(nnx.Linear, "lora")
    layer.lora.b.kernel.set_value(jax.random.normal(jax.random.key(0), (3, 16)))
    graphdef, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(1), (*rows, 12))

    def ours(params, x):
        return jnp.sin(nnx.merge(graphdef, params)(x)).sum()

    def formula(params, x):
        own = nnx.as_pure(params)
        change = 2.0 * (x @ own["lora"]["a"]["kernel"]) @ own["lora"]["b"]["kernel"]
        return jnp.sin(x @ own["kernel"] + own["bias"] + change).sum()

    found, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(params, x) for f in (ours, formula))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), found, expected)


@pytest.mark.parametrize("mode", [chain.Mode(dropout=True), EVAL])
def test_adapters_draw_where_their_stage_does(monkeypatch, mode):
    """Each a mask of its own, but one for the adapters of one fused tensor, and another in every step; none where the
    stage draws nothing."""
    keys = []
    monkeypatch.setattr(nn_adapters, "dropout", lambda x, rate, key: keys.append(key) or x)
    rules = ((r"blocks/.*/(query|key|value)/kernel", Adapter(dropout=0.5)), (r".*/down/kernel", Adapter(dropout=0.5)))
    fused = [tuple(f"blocks/{i}/attn/{name}/kernel" for name in ("query", "key", "value")) for i in range(2)]
    model = with_adapters(toys.small_bert(), Plan(adapters=rules), fused)
    chains, params = chain.split(model)
    for seed in (0, 1):
        chain.run_chains(model, chains, params, toys.tokens(), lambda _: mode, jax.random.key(seed))
    found = [None if key is None else tuple(jax.random.key_data(key).tolist()) for key in keys]
    if not mode.dropout:
        assert found == [None] * 16
        return
    # The layers of a block in the order of its call: queries, keys, values, the feed-forward's second.
    queries, others, values, downs = (found[i::4] for i in range(4))
    assert queries == others == values and len({*queries, *downs}) == 8


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "bottleneck"])
def test_outputs_keep_the_dtype_of_the_network(kind):
    """Adapters are float32 beside a base in bfloat16, and its activations stay bfloat16."""
    layer = nnx.Linear(4, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    adapter = adapters.KINDS[kind](layer, Adapter(kind), rngs=nnx.Rngs(0))
    setattr(layer, adapter.name, adapter)
    layer.__class__ = adapters.adapted(nnx.Linear, adapter.name)
    assert layer(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_an_adapter_made_in_python_has_its_fields_checked():
    """It is read as data, like everything else in a config."""
    exp = Experiment(model=Model("x"), train=Train(steps=1))
    rules = ((".*/query/kernel", Adapter("dora", rank=4)),)
    assert config.override(exp, {"plan.adapters": rules}).plan.adapters == rules
    with pytest.raises(UserError, match=r"rank is 'four'"):
        config.override(exp, {"plan.adapters": ((".*", Adapter(rank="four")),)})


@pytest.mark.parametrize(
    "plan,message",
    [
        (Plan(preset="full", rank=4), "plan.rank goes with plan.preset=lora"),
        (Plan(preset="lora", rank=0), "plan.rank must be at least 1"),
        (Plan(adapters=((".*", Adapter(rank=0)),)), "lora on '.*' has rank 0"),
        (Plan(adapters=((".*", Adapter("ia3", alpha=2.0)),)), "ia3 on '.*' has no alpha and no use_rslora"),
        (Plan(adapters=((".*", Adapter("dora", feedforward=True)),)), "dora on '.*' has no feedforward"),
        (Plan(adapters=((".*", Adapter("dora", dropout=1.0)),)), "dora on '.*' has dropout 1.0, must be in"),
        (Plan(adapters=((".*", Adapter("ia3", dropout=0.1)),)), "ia3 on '.*' has no dropout"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(plan, message):
    """By name, before anything is built."""
    with pytest.raises(UserError) as error:
        config.validate(Experiment(model=Model("x"), train=Train(steps=1), plan=plan))
    assert message in str(error.value)


_WIDTH, _BATCH, _LENGTH, _RANK = 128, 8, 64, 8


@functools.cache
def _compiled():
    """(FLOPs of a LoRA step, of forward and the activations' backward pass without adapters; what the state holds)."""
    plan = Plan(preset="lora", rank=_RANK)
    plain = nnx.eval_shape(lambda: toys.small_bert(layers=6, width=_WIDTH, rate=0.0))
    model = nnx.eval_shape(lambda: with_adapters(toys.small_bert(layers=6, width=_WIDTH, rate=0.0), plan))
    chains, params = chain.split(model)
    objective = ChainObjective(model, chains, resolve(plan, chains, params, 0.0), toys.cross_entropy)
    step = Step(objective, optax.sgd(1e-3))
    shapes = {"input_ids": (_BATCH, _LENGTH), "attention_mask": (_BATCH, _LENGTH), "label": (_BATCH,)}
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}

    def start():
        leaves = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in params.items()}
        return initial_state(leaves, objective.plan.trained, (), step.tx, jax.random.key(0))

    state = jax.eval_shape(start)
    lora = step.core.lower(state.moving, state.constant, batch).compile().cost_analysis()["flops"]

    chains, params = chain.split(plain)
    below = {"": 1}

    def activations(params, batch):
        crossing = cut.run_prefix(plain, chains, below, params, batch)

        def loss(x):
            carry = {"": crossing[""]._replace(x=x)}
            outputs, _ = cut.run_suffix(plain, chains, below, carry, params, batch, lambda _: EVAL)
            return toys.cross_entropy(outputs, batch)[0].sum()

        return jax.value_and_grad(loss)(crossing[""].x)

    options = barriers.compiler_options()
    both = jax.jit(activations, compiler_options=options).lower(params, batch).compile().cost_analysis()["flops"]
    return lora, both, state


def test_a_step_computes_no_gradient_of_the_kernels():
    """Adapters and all, within 3 % of forward and the activations' backward pass alone (measured: 0.2 % less). The
    gradients of the twelve adapted kernels would be another 6 %."""
    lora, both, _ = _compiled()
    assert 0.97 * both <= lora <= 1.03 * both
    assert 12 * 2 * _BATCH * _LENGTH * _WIDTH * _WIDTH > 0.05 * both


def test_the_state_that_moves_is_adapters_and_head():
    """Bytes of what trains: 4 for each number of twelve adapters and the head."""
    _, _, state = _compiled()
    trained = sum(leaf.size for leaf in state.trained.values())
    assert trained == 12 * 2 * _WIDTH * _RANK + 3 * _WIDTH + 3
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.moving)) == 4 * trained + 4
