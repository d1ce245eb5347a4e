# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The SHARDING rules of every family: none is dead, blocks are split in pairs, and what that costs and computes.

A branch of a block that is split as Megatron-LM splits it (Shoeybi et al. 2019) has its first kernels split by outputs
and its last by inputs, so that devices have nothing to tell each other until the sum at its end.
"""

import dataclasses
import functools
import importlib
import json
import re

import jax
import makers
import numpy as np
import published
import pytest
import references
from jax.sharding import PartitionSpec

from tl_jax import config, costs, loading, pretrained
from tl_jax.core import chain, plugins
from tl_jax.core.chain import EVAL
from tl_jax.engine import build
from tl_jax.parallel import mesh as meshes
from tl_jax.parallel import sharding
from tl_jax.parallel.collectives import counted

FAMILIES = plugins.names("tl_jax.models")
SPLIT = [family for family in FAMILIES if importlib.import_module(f"tl_jax.models.{family}").SHARDING]
PLAIN = [family for family in FAMILIES if family not in SPLIT]

# Sums over devices of a forward pass: two a block, three where it attends to another chain too, one where it has an MLP
# alone; and one where words are looked up in a table that is split.
SUMS = {
    "bert": 2 * 2 + 1,
    "gpt2": 2 * 2 + 1,
    "llama": 2 * 2 + 1,
    "vit": 2 * 2,
    "swin": 2 * 4,
    "t5": 2 * 2 + 3 * 3 + 2,
    "wav2vec2": 2 * 2,
    "convnext": 3,
    "whisper": 2 * 2 + 3 + 1,
    "clip": 2 * 3 + 1,
}
HEADED = {
    "bert": "BertForSequenceClassification",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "vit": "ViTForImageClassification",
    "swin": "SwinForImageClassification",
    "t5": "T5ForConditionalGeneration",
    "wav2vec2": "Wav2Vec2ForCTC",
    "convnext": "ConvNextForImageClassification",
    "whisper": "WhisperForConditionalGeneration",
    "clip": "CLIPModel",
}
# Forms that the small published configs do not take.
FURTHER = {
    "gpt2": {"tie_word_embeddings": False},
    "t5": {"tie_word_embeddings": False},
    "whisper": {"tie_word_embeddings": False},
    "convnext": {"conv_mlp": True},
}
BY_OUTPUTS = ("query", "key", "value", "position_query", "position_key", "gate", "up", "expand")
BY_INPUTS = ("out", "down", "reduce")
# Matrices of a block that stay whole: the first has no partner, the second is of a few columns.
WHOLE = {"swin": {"merge/reduction"}, "wavlm": {"attn/gate"}}


def rules_of(family: str):
    """The family's rules."""
    return importlib.import_module(f"tl_jax.models.{family}").SHARDING


def small(family: str, name: str | None = None, number: int = 0):
    """(checkpoint, config of transformers) of a small published class, by default the bare one."""
    (transformers,) = references.quiet("transformers")
    tiny, module = (importlib.import_module(f"{where}.{family}") for where in ("published", "tl_jax.models"))
    if tiny.MODEL is None:
        return loading.from_config({"model_type": module.MODEL_TYPES[0]}, family=family), None
    theirs = transformers.AutoConfig.for_model(module.MODEL_TYPES[0], **tiny.CONFIGS[number])
    fields = {**json.loads(theirs.to_json_string()), "architectures": [name or tiny.MODEL]}
    return loading.from_config(fields, family=family), theirs


def network(checkpoint):
    """The abstract network with the head that its class names, if any."""
    head = pretrained.published_head(checkpoint)
    if head is None:
        return loading.abstract(checkpoint)
    return loading.abstract(checkpoint.for_pool(head[0].pool), loading.adder(head[0]))


@functools.cache
def leaves(family: str) -> dict[str, tuple[int, ...]]:
    """Shapes by path of all forms that the family takes."""
    count = len(getattr(importlib.import_module(f"published.{family}"), "CONFIGS", [None]))
    forms = [small(family, number=number)[0] for number in range(count if rules_of(family) else 1)]
    heads = importlib.import_module(f"tl_jax.models.{family}").HEADS
    forms += [small(family, name)[0] for name, (task, _) in heads.items() if task == "language_model"]
    if family in FURTHER:
        changed = dataclasses.replace(forms[-1].config, **FURTHER[family])
        forms.append(dataclasses.replace(forms[-1], config=changed))
    return {path: leaf.shape for form in forms for path, leaf in chain.split(network(form))[1].items()}


def matrices(family: str) -> dict[str, tuple[int, ...]]:
    """Kernels that are matrices, convolutions of one pixel too, by the path of their layer."""
    return {
        path.removesuffix("/kernel"): shape
        for path, shape in leaves(family).items()
        if path.endswith("/kernel") and len(shape) in (2, 4) and set(shape[:-2]) <= {1}
    }


@pytest.mark.parametrize("family", SPLIT)
def test_every_rule_is_of_use(family):
    """It is the first to match some parameter, with as many axes as that has dimensions."""
    rules, used = rules_of(family), set()
    for path, shape in leaves(family).items():
        found = [rule for rule in rules if re.fullmatch(rule[0], path)]
        if found:
            used.add(found[0])
            assert len(found[0][1]) == len(shape), path
    assert set(rules) == used


@pytest.mark.parametrize("family", SPLIT)
def test_branches_are_split_in_pairs(family):
    """First kernels and their biases by outputs, the last by inputs, its bias not; no matrix of a block is left out."""
    mesh, shapes, seen = meshes.build(config.Mesh(1, 1, 2), jax.devices()[:2]), leaves(family), set()

    def spec(path):
        return sharding.param_spec(path, shapes[path], mesh, rules_of(family))

    found = matrices(family)
    branches = {layer.rpartition("/")[0] for layer in found if layer.rpartition("/")[2] in BY_INPUTS}
    for layer, shape in found.items():
        parent, _, name = layer.rpartition("/")
        last = len(shape) - 1 if name in BY_OUTPUTS else len(shape) - 2
        if parent not in branches or name not in (*BY_OUTPUTS, *BY_INPUTS) or shape[last] % 2:
            continue
        if any(layer.endswith(f"/{whole}") for whole in WHOLE.get(family, ())):
            continue
        seen.add(layer)
        assert spec(f"{layer}/kernel") == PartitionSpec(*[None] * last, "tensor"), layer
        if f"{layer}/bias" in shapes:
            expected = PartitionSpec("tensor") if name in BY_OUTPUTS else PartitionSpec()
            assert spec(f"{layer}/bias") == expected, layer
    left = {
        layer.split("/", layer.split("/").index("blocks") + 2)[-1]
        for layer in found.keys() - seen
        if "blocks/" in layer
    }
    assert left == WHOLE.get(family, set())
    assert any(layer.rpartition("/")[2] in BY_OUTPUTS for layer in seen)


@pytest.mark.parametrize("family", PLAIN)
def test_a_family_without_rules_has_no_transformer_block(family):
    """Nothing in its blocks but convolutions."""
    dense = [path for path, shape in leaves(family).items() if "blocks/" in path and len(shape) == 2]
    assert not dense


@functools.cache
def headed(family: str):
    """(abstract network with a head, batch of four rows)."""
    checkpoint, theirs = small(family, HEADED[family])
    kind = published.texts if hasattr(theirs, "vocab_size") else published.images
    batch = getattr(importlib.import_module(f"published.{family}"), "batch", kind)(theirs, np.random.default_rng(1))
    return network(checkpoint), {field: value[[0, 1, 2, 0]] for field, value in batch.items()}


def placed(family: str, mesh, min_size: int = sharding.MIN_SIZE):
    """(jitted forward pass, abstract parameters and batch as they lie on the mesh)."""
    model, batch = headed(family)
    chains, params = chain.split(model)
    places = sharding.param_shardings(params, mesh, rules_of(family), min_size)
    params = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[path]) for path, x in params.items()}

    def forward(params, batch):
        return chain.run_chains(model, chains, params, batch, lambda _: EVAL)[0]

    return jax.jit(forward), params, sharding.put_batch(batch, mesh)


@pytest.mark.parametrize("family", SUMS)
def test_a_branch_takes_one_sum_over_devices(family):
    """And nothing else: no activation is gathered."""
    mesh = meshes.build(config.Mesh(1, 1, 2), jax.devices()[:2])
    forward, params, batch = placed(family, mesh)
    text = forward.lower(params, batch).compile().as_text()
    assert set(counted(text)) == {"all-reduce"}
    # One instruction may sum up several arrays.
    assert sum(results.count("[") for results in re.findall(r" = (.*?) all-reduce\(", text)) == SUMS[family]


@pytest.mark.parametrize("family", SUMS)
def test_three_axes_compute_what_one_device_does(family):
    """Logits and features with all leaves split that can be, small ones too."""
    found, rng = [], np.random.default_rng(0)
    values = {path: drawn(path, x.shape, rng) for path, x in chain.split(headed(family)[0])[1].items()}
    for sizes in ((1, 1, 1), (2, 2, 2)):
        mesh = meshes.build(config.Mesh(*sizes), jax.devices()[: np.prod(sizes)])
        forward, params, batch = placed(family, mesh, min_size=64)
        params = {path: jax.device_put(values[path], x.sharding) for path, x in params.items()}
        found.append(jax.device_get(forward(params, batch)))
    one, eight = found
    assert any(name.startswith("logits") for name in one)
    for name, value in one.items():
        # Float32 sums of a few dozen terms in another order, through a few layers of order 1.
        np.testing.assert_allclose(eight[name], value, atol=1e-5, rtol=1e-5, err_msg=name)
        assert np.std(value) > 0.1, "too flat to tell anything"


def drawn(path: str, shape: tuple[int, ...], rng) -> np.ndarray:
    """Values under which features stay of order 1."""
    if len(shape) <= 1:
        return rng.normal(float(path.endswith("scale")), 0.2, shape).astype(np.float32)
    deviation = 0.5 if path.endswith("embedding") else np.prod(shape[:-1]) ** -0.5
    return rng.normal(0, deviation, shape).astype(np.float32)


def test_gradients_are_sent_of_what_trains_alone(tmp_path):
    """Where the last block trains, devices send each other its gradients and the head's, and a few scalars: what they
    sum up is no more than these leaves, and no less than what each device holds of them."""
    wide = {"hidden_size": 64, "intermediate_size": 256, "vocab_size": 512, "num_hidden_layers": 2}
    exp = makers.changed(makers.text_run(tmp_path), plan__preset="last_n", plan__n=1, data__buckets=())
    exp = makers.changed(exp, model__pretrained=makers.bert(tmp_path / "wide", **wide))
    engine = build(exp, mesh=meshes.build(config.Mesh(1, 2), jax.devices()[:2]))
    trained = [engine.abstract_params[path] for path in engine.plan.trained]
    # At a batch for which it is cheaper to gather parameters than to move activations.
    found = counted(costs.compile_step(engine, 512).as_text())
    summed = sum(found[kind].nbytes for kind in ("all-reduce", "reduce-scatter") if kind in found)
    held = sum(4 * int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in trained)
    assert held <= summed <= sum(4 * leaf.size for leaf in trained) + 1024
