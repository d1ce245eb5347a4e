# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters beside those of PEFT, both ways through its files, every tensor drawn so that none hides behind a zero."""

import dataclasses
import importlib
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import references
from flax import nnx
from safetensors.numpy import load_file, save_file

import tl_jax
from tl_jax.config import Adapter, Plan
from tl_jax.core import chain
from tl_jax.core.errors import UserError
from tl_jax.nn import adapters as nn_adapters
from tl_jax.nn.adapters import LoRA, adapted
from tl_jax.plan import adapters
from tl_jax.weights.peft import Names

# Family, class, what PEFT adapts: (target modules, of which feed-forward, for (IA)³).
_FAMILIES = {
    "bert": ("BertForSequenceClassification", ["query", "value"], ["key", "value", "output.dense"], ["output.dense"]),
    "gpt2": ("GPT2ForSequenceClassification", ["c_attn", "mlp.c_fc"], ["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": ("LlamaForSequenceClassification", ["q_proj", "v_proj"], ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "vit": ("ViTForImageClassification", ["q_proj", "v_proj"], ["k_proj", "v_proj", "fc2"], ["fc2"]),
    "resnet": ("ResNetForImageClassification", ["convolution"], ["convolution"], []),
}
_HEADS = ["classifier", "score"]
_LOW_RANK = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
_TABLE = {"target_modules": ["word_embeddings"]}
# Sums of a few dozen terms in float32 in another order, through a few layers of order 1.
_CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def hf():
    """(torch, transformers, peft)."""
    return references.quiet("torch", "transformers", "peft")


@dataclasses.dataclass
class Case:
    """A base in files, what PEFT made of it, in files too, and the outputs of that."""

    hf: tuple
    base: object
    adapter: object
    reference: object
    batch: dict

    def logits(self, model) -> np.ndarray:
        """What a model of PEFT or `transformers` gives."""
        torch = self.hf[0]
        inputs = {name: torch.from_numpy(np.asarray(value)) for name, value in self.batch.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].permute(0, 3, 1, 2)
        with torch.no_grad():
            return model(**inputs).logits.numpy()

    def read_by_peft(self, folder) -> np.ndarray:
        """The logits of the base with the adapter in this folder."""
        _, transformers, peft = self.hf
        model = type(self.reference.get_base_model()).from_pretrained(self.base).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = peft.PeftModel.from_pretrained(model, folder).eval()
        return self.logits(loaded)


@pytest.fixture(scope="module")
def make(hf, tmp_path_factory):
    """A function that draws a base and an adapter and writes both: `make("bert", "dora")`."""
    torch, transformers, peft = hf

    def draw(family, kind):
        name, low, scaled, ahead = _FAMILIES[family]
        tiny = importlib.import_module(f"published.{family}")
        torch.manual_seed(0)
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**tiny.CONFIGS[0], num_labels=3)).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.normal_(0.0, 0.5 if tensor.ndim < 2 else tensor[0].numel() ** -0.5)
        base = tmp_path_factory.mktemp("base")
        model.save_pretrained(base)
        if kind == "ia3":
            config = peft.IA3Config(target_modules=scaled, feedforward_modules=ahead, modules_to_save=_HEADS)
        else:
            more = {"target_modules": low, **(_TABLE if kind == "table" else _LOW_RANK[kind])}
            config = peft.LoraConfig(r=2, lora_alpha=6, modules_to_save=_HEADS, **more)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = peft.get_peft_model(model, config).eval()
            with torch.no_grad():
                for path, tensor in reference.named_parameters():
                    if tensor.requires_grad:
                        factor = torch.empty_like(tensor).uniform_(0.5, 1.5)
                        times = "magnitude" in path or "ia3" in path
                        tensor.copy_(tensor * factor if times else torch.randn_like(tensor) * 0.3)
            adapter = tmp_path_factory.mktemp("adapter")
            reference.save_pretrained(adapter)
        kind_of = published.texts if hasattr(model.config, "vocab_size") else published.images
        batch = getattr(tiny, "batch", kind_of)(model.config, np.random.default_rng(1))
        return Case(hf, base, adapter, reference, batch)

    return draw


def logits(pretrained, batch) -> np.ndarray:
    """As a call gives them, compiled without optimising what runs once."""
    model = pretrained.model
    chains, params = chain.split(model)
    forward = jax.jit(
        lambda params: chain.run_chains(model, chains, params, batch, lambda _: chain.EVAL)[0]["logits"],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return np.asarray(forward(params))


@pytest.mark.parametrize("kind", [*_LOW_RANK, "ia3"])
@pytest.mark.parametrize("family", _FAMILIES)
def test_the_same_network_as_peft_both_ways(make, tmp_path, family, kind):
    """PEFT's files here, before and after merging, and ours in PEFT, give PEFT's logits; and the base does not."""
    both_ways(make(family, kind), tmp_path)


def test_a_table_of_words_as_in_peft(make, tmp_path):
    """LoRA on an embedding, both ways."""
    both_ways(make("bert", "table"), tmp_path)


def both_ways(case, tmp_path) -> None:
    """The body of the two tests above."""
    expected = case.logits(case.reference)
    adapted = tl_jax.load_adapter(tl_jax.load_pretrained(case.base), case.adapter)
    np.testing.assert_allclose(logits(adapted, case.batch), expected, **_CLOSE)
    with case.reference.disable_adapter():
        assert np.abs(case.logits(case.reference) - expected).max() > 0.05
    merged = adapted.merge()
    assert adapters.installed(adapted.model) and not adapters.installed(merged.model)
    np.testing.assert_allclose(logits(merged, case.batch), expected, **_CLOSE)
    tl_jax.save_adapter(adapted, tmp_path / "ours")
    np.testing.assert_allclose(case.read_by_peft(tmp_path / "ours"), expected, **_CLOSE)
    numbers = sum(leaf.size for path, leaf in adapted.params.items() if adapters.is_adapter(path) or "head/" in path)
    assert numbers == case.reference.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_are_those_of_peft(hf, dora):
    """Of one layer: of both factors and the magnitude, whose norm PEFT takes as a constant."""
    torch, _, peft = hf
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["0"], use_dora=dora)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(5, 4)), config)
    theirs = {path.rpartition("lora_")[2].split(".")[0]: p for path, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        theirs["B"].normal_()
    x = torch.randn(3, 5)
    model(x).pow(2).sum().backward()

    base = model.base_model.model[0].base_layer
    rngs = nnx.Rngs(0)
    layer = nnx.Linear(5, 4, rngs=rngs)
    layer.kernel.set_value(jnp.asarray(base.weight.detach().numpy().T))
    layer.bias.set_value(jnp.asarray(base.bias.detach().numpy()))
    layer.lora = LoRA(layer, Adapter("dora" if dora else "lora", rank=2, alpha=6.0), rngs=rngs)
    layer.__class__ = adapted(nnx.Linear, "lora")
    layer.lora.a.kernel.set_value(jnp.asarray(theirs["A"].detach().numpy().T))
    layer.lora.b.kernel.set_value(jnp.asarray(theirs["B"].detach().numpy().T))
    found = nnx.grad(lambda layer: jnp.sum(layer(jnp.asarray(x.numpy())) ** 2))(layer).lora
    # A dozen products in float32 in another order.
    np.testing.assert_allclose(found.a.kernel[...].T, theirs["A"].grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.b.kernel[...].T, theirs["B"].grad, rtol=1e-4, atol=1e-5)
    if dora:
        np.testing.assert_allclose(found.magnitude[...], theirs["magnitude_vector"].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_that_of_peft(hf, monkeypatch, dora):
    """The same mask in PEFT's dropout gives the same outputs: of the input of `a`, and of all that DoRA adds."""
    torch, _, peft = hf
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=6, lora_dropout=0.5, target_modules=["0"], use_dora=dora)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(5, 4)), config).train()
    theirs = model.base_model.model[0]
    x, mask = torch.randn(3, 5), 2.0 * torch.bernoulli(torch.full((3, 5), 0.5))

    class Masked(torch.nn.Module):
        def forward(self, x):
            return x * mask

    theirs.lora_dropout["default"] = Masked()
    monkeypatch.setattr(nn_adapters, "dropout", lambda x, rate, key: x * mask.numpy())
    layer = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    layer.lora = LoRA(layer, Adapter("dora" if dora else "lora", rank=2, alpha=6.0, dropout=0.5), rngs=nnx.Rngs(0))
    layer.__class__ = adapted(nnx.Linear, "lora")
    with torch.no_grad():
        theirs.lora_B["default"].weight.normal_()
        pairs = [(layer.kernel, theirs.base_layer.weight.T), (layer.bias, theirs.base_layer.bias)]
        pairs += [(layer.lora.a.kernel, theirs.lora_A["default"].weight.T)]
        pairs += [(layer.lora.b.kernel, theirs.lora_B["default"].weight.T)]
        if dora:
            theirs.lora_magnitude_vector["default"].weight.uniform_(0.5, 1.5)
            pairs += [(layer.lora.magnitude, theirs.lora_magnitude_vector["default"].weight)]
        for ours, tensor in pairs:
            ours.set_value(jnp.asarray(tensor.numpy()))
        expected = model(x).numpy()
    # A dozen products in float32 in another order.
    np.testing.assert_allclose(layer(jnp.asarray(x.numpy())), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def gpt2(make):
    """A case of GPT-2 with LoRA, and its base."""
    case = make("gpt2", "lora")
    return case, tl_jax.load_pretrained(case.base)


def with_adapters(base, *rules):
    """The base with adapters of this plan, as they begin."""
    model = nnx.clone(base.model)
    adapters.install(model, adapters.choose(Plan(adapters=rules), model, ()), (), nnx.Rngs(0))
    return base.around(model)


def test_ranks_and_alphas_of_their_own_survive(gpt2, tmp_path):
    """Layers of another rank and alpha are read back as they were, with their dropout; PEFT's logits are the same."""
    case, base = gpt2
    network = with_adapters(
        base,
        (r"blocks/0/mlp/up/kernel", Adapter("lora", rank=3, alpha=9.0, dropout=0.1)),
        (r"blocks/\d/(mlp/(up|down)|attn/out)/kernel", Adapter("lora", rank=2, dropout=0.1)),
    )
    for layer in adapters.installed(network.model).values():
        layer.lora.b.kernel.set_value(layer.lora.b.kernel[...] + 0.5)
    tl_jax.save_adapter(network, tmp_path / "a")
    back = tl_jax.load_adapter(base, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_dropout"] == 0.1
    specs = {path: layer.lora.spec for path, layer in adapters.installed(back.model).items()}
    assert len(specs) == 6 and specs["blocks/0/mlp/up/kernel"] == Adapter("lora", rank=3, alpha=9.0, dropout=0.1)
    assert specs["blocks/1/mlp/up/kernel"] == Adapter("lora", rank=2, alpha=2.0, dropout=0.1)
    expected = logits(network, case.batch)
    np.testing.assert_array_equal(logits(back, case.batch), expected)
    np.testing.assert_allclose(case.read_by_peft(tmp_path / "a"), expected, **_CLOSE)


@pytest.mark.parametrize(
    "rules,message",
    [
        ([(r"blocks/0/attn/query/kernel", Adapter("lora"))], "c_attn as a whole"),
        ([(r".*/mlp/up/kernel", Adapter("lora")), (r".*/mlp/down/kernel", Adapter("dora"))], "not dora, lora"),
        ([(r".*/mlp/up/kernel", Adapter("bottleneck"))], "not bottleneck"),
        ([(r".*/mlp/up/kernel", Adapter(dropout=0.1)), (r".*/down/kernel", Adapter())], r"one dropout, not 0\.0, 0\.1"),
    ],
)
def test_what_peft_has_no_form_for_is_refused(gpt2, tmp_path, rules, message):
    """A part of a fused tensor, two kinds at once, bottlenecks: in one line, and nothing is written."""
    with pytest.raises(UserError, match=message):
        tl_jax.save_adapter(with_adapters(gpt2[1], *rules), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_another_base_is_refused(gpt2, make, tmp_path):
    """By the digest that `save_adapter` leaves beside the tensors."""
    case, base = gpt2
    tl_jax.save_adapter(tl_jax.load_adapter(base, case.adapter), tmp_path / "a")
    shutil.copytree(case.base, tmp_path / "other")
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"] + 1
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="belongs to other weights"):
        tl_jax.load_adapter(tl_jax.load_pretrained(tmp_path / "other"), tmp_path / "a")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"bias": "all", "lora_bias": True}, "bias='all', lora_bias=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"use_dora": True}, "found no parameter"),
    ],
)
def test_adapters_of_other_kinds_are_refused(gpt2, tmp_path, changes, message):
    """What would give another result than PEFT's, by the name of the field."""
    case, base = gpt2
    shutil.copytree(case.adapter, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message):
        tl_jax.load_adapter(base, tmp_path / "a")


def test_tensors_without_a_place_are_refused(gpt2, tmp_path):
    """By name and shape; so is a folder without the files."""
    case, base = gpt2
    shutil.copytree(case.adapter, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    tensors["base_model.model.transformer.h.7.attn.c_attn.lora_A.weight"] = np.zeros((2, 16), np.float32)
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"1 tensors found no parameter: transformer\.h\.7\.attn\.c_attn"):
        tl_jax.load_adapter(base, tmp_path / "a")
    with pytest.raises(UserError, match=r"has no adapter_config\.json"):
        tl_jax.load_adapter(base, tmp_path)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "swin", "ast", "bert", "whisper"])
def test_layers_are_called_as_in_transformers(hf, family, tmp_path):
    """Every kernel of a published file under the name of its module, which for some is not that of its tensor."""
    tiny, ours = (importlib.import_module(f"{package}.{family}") for package in ("published", "tl_jax.models"))
    cls = getattr(hf[1], tiny.MODEL)
    model = cls(cls.config_class(**tiny.CONFIGS[0]))
    model.save_pretrained(tmp_path)
    fields = ours.Config.from_published(json.loads((tmp_path / "config.json").read_text()))
    names = Names(ours.SOURCES["hf"], fields.indices(), bare=True)
    known = {rule.tensors[0] for rule in names.rules if rule.params[0].endswith("/kernel")}
    found = [names.source.canonical(name, known) for name in load_file(tmp_path / "model.safetensors")]
    kernels = known.intersection(found)
    assert len(kernels) > 6 and {names.of(name) for name in kernels} <= set(model.state_dict())
