# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What must hold for every family, against `transformers`: a new file in `tl_jax/models` needs one in tests/published.

Every tensor of the reference is drawn anew, biases, norms and running statistics too, so that none hides behind a
zero or a one.
"""

import copy
import dataclasses
import importlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import references
from safetensors.numpy import load_file

import tl_jax
from tl_jax import loading, pretrained
from tl_jax.core import chain, plugins
from tl_jax.core.chain import EVAL, Mode
from tl_jax.core.errors import UserError
from tl_jax.weights.files import WeightFiles
from tl_jax.weights.match import match_tensors


def tiny(family: str):
    """The family's module in tests/published."""
    return importlib.import_module(f"published.{family}")


FAMILIES = [family for family in plugins.names("tl_jax.models") if tiny(family).MODEL is not None]


def heads(family: str) -> list[str]:
    """Published classes with a head; names in HEADS that are no CamelCase describe no class of `transformers`."""
    names = importlib.import_module(f"tl_jax.models.{family}").HEADS
    return [name for name in names if name.isidentifier() and not name.islower()]


def classes(family: str) -> list[str]:
    """Published classes to compare with: those with a head first, then others, the bare one last."""
    return [*heads(family), *getattr(tiny(family), "OTHERS", ()), tiny(family).MODEL]


def cases() -> list:
    """The bare class, whose names lack the prefix, on the last config; every other one on the others."""
    chosen = []
    for family in FAMILIES:
        configs = tiny(family).CONFIGS
        with_head = configs[:-1] or configs
        *others, bare = classes(family)
        chosen += [(family, name, number, fields) for number, fields in enumerate(with_head) for name in others]
        chosen.append((family, bare, len(configs) - 1, configs[-1]))
    return [pytest.param((family, name, fields), id=f"{name}-{number}") for family, name, number, fields in chosen]


CASES = cases()
# Compiling a gradient is what takes long here: one for each family, with its head if there is one.
ONE_EACH = [case for case in CASES if case.id in [f"{classes(family)[0]}-0" for family in FAMILIES]]


@pytest.fixture(scope="module")
def hf():
    """(torch, transformers)."""
    return references.quiet("torch", "transformers")


@dataclasses.dataclass
class Case:
    """One published class: the reference, its files, what was loaded from them, and a batch."""

    torch: object
    family: str
    reference: object
    folder: object
    loaded: object
    batch: dict

    def expected(self, model=None) -> dict:
        """The reference's outputs, as torch tensors with channels last."""
        inputs = {name: self.torch.from_numpy(np.asarray(value)) for name, value in self.batch.items()}
        outputs = getattr(tiny(self.family), "expected", published.outputs)
        return outputs(self.reference if model is None else model, inputs)

    def run(self, params, mode=EVAL):
        """Outputs and running statistics at these parameters."""
        model = self.loaded.model
        return chain.run_chains(model, chain.split(model)[0], params, self.batch, lambda _: mode)

    def stats(self) -> set[str]:
        """Paths of the running statistics."""
        return {path for stages in chain.split(self.loaded.model)[0].values() for s in stages for path in s.stats()}


def quick(function):
    """A jit that spends no time on optimising what runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module", params=CASES)
def case(request, hf, tmp_path_factory):
    torch, transformers = hf
    family, name, fields = request.param
    gain = getattr(tiny(family), "GAIN", 1.0)
    reference, folder = draw(torch, transformers, name, fields, gain), tmp_path_factory.mktemp("published")
    reference.save_pretrained(folder)
    kind = published.texts if hasattr(reference.config, "vocab_size") else published.images
    batch = getattr(tiny(family), "batch", kind)(reference.config, np.random.default_rng(1))
    return Case(torch, family, reference, folder, tl_jax.load_pretrained(folder), batch)


def draw(torch, transformers, name, fields, gain=1.0):
    """The class with every tensor drawn anew, such that features are of order 1; `gain` widens the kernels."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    extra = {"num_labels": 3} if "For" in name and not name.endswith("QuestionAnswering") else {}
    model = cls(cls.config_class(**fields, **extra)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # It keeps a gradient from the padding, whose outputs only a test reads.
    saved = model.state_dict()
    with torch.no_grad():
        for path, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            # Buffers that no file holds, such as rotary frequencies, follow from the config.
            if not tensor.is_floating_point() or path not in saved:
                continue
            if path.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim <= 1:
                tensor.normal_(1.0 if path.endswith("weight") else 0.0, 0.2)
            elif "embeddings" in path or "token" in path:
                tensor.normal_(0.0, 0.5)
            else:
                tensor.normal_(0.0, gain * tensor[0].numel() ** -0.5)
    return model


def through_files(case, tmp_path, model) -> dict:
    """The parameters of a torch model by our paths, through its files."""
    model.save_pretrained(tmp_path)
    return tl_jax.load_pretrained(tmp_path).params


def test_outputs_are_those_of_transformers(case):
    """Features, pooled features and logits, padding included."""
    with case.torch.no_grad():
        expected = case.expected()
    found = case.loaded(case.batch)
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        # Float32 sums of a few dozen terms in another order, through a few layers of order 1.
        np.testing.assert_allclose(found[name], value, atol=1e-4, rtol=1e-4, err_msg=name)
        assert np.std(value.numpy()) > 0.1, "too flat to tell anything"


@pytest.mark.parametrize("case", ONE_EACH, indirect=True)
def test_bfloat16_stays_bfloat16(case):
    """Parameters cast to bfloat16: hidden states in it too, no stage widens them. Nothing is computed but shapes."""
    model = case.loaded.model
    found, _ = jax.eval_shape(
        lambda params: chain.run_chains(
            model, chain.split(model)[0], params, case.batch, lambda _: EVAL, dtype=jnp.bfloat16
        ),
        case.loaded.params,
    )
    hidden = {name: value.dtype for name, value in found.items() if name.endswith(("hidden_state", "pooler_output"))}
    assert hidden and set(hidden.values()) == {jnp.dtype(jnp.bfloat16)}, hidden


def test_saved_files_are_the_source_bit_for_bit(case, tmp_path):
    """Whether tensors are copied from the source or written through the key map backwards."""
    source = load_file(case.folder / "model.safetensors")
    case.loaded.save(tmp_path / "copied")
    changed = tl_jax.load_pretrained(case.folder)
    chain.merge_into(changed.model, {path: jnp.array(leaf) for path, leaf in changed.params.items()})
    changed.save(tmp_path / "written")
    for name in ("copied", "written"):
        saved = load_file(tmp_path / name / "model.safetensors")
        assert saved.keys() == source.keys()
        for key, tensor in source.items():
            assert saved[key].dtype == tensor.dtype and saved[key].tobytes() == tensor.tobytes(), key


def test_transformers_loads_what_we_save(case, tmp_path):
    """Nothing missing, nothing unexpected, the same outputs."""
    case.loaded.save(tmp_path / "saved")
    cls = type(case.reference)
    model, info = cls.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    # Tensors of a mapped file lie at odd addresses, where some of torch's kernels round otherwise.
    model = copy.deepcopy(model).eval()
    with case.torch.no_grad():
        expected, found = case.expected(), case.expected(model)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("case", ONE_EACH, indirect=True)
def test_gradients_are_those_of_transformers(case, tmp_path):
    """Of a loss that reads every output, for every parameter."""
    model = copy.deepcopy(case.reference)
    outputs = case.expected(model)
    rng = np.random.default_rng(2)
    weights = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in outputs.items()}
    sum((value * case.torch.from_numpy(weights[name])).sum() for name, value in outputs.items()).backward()
    for tensor in model.parameters():
        tensor.data = case.torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    expected = through_files(case, tmp_path, model)

    def loss(params):
        found, _ = case.run(params)
        return sum(jnp.sum(found[name] * weight) for name, weight in weights.items())

    stats = case.stats()
    found = quick(jax.grad(loss))(case.loaded.params)
    largest = max(float(jnp.abs(expected[path]).max()) for path in expected if path not in stats)
    for path in expected.keys() - stats:
        # Gradients of key biases are zero up to rounding, whence the second term.
        limit = 1e-3 * float(jnp.abs(expected[path]).max()) + 1e-6 * largest
        assert float(jnp.abs(found[path] - expected[path]).max()) <= limit, path


def test_batch_statistics_are_those_of_transformers(case, tmp_path):
    """Training mode: outputs normalised by the batch, and the running statistics after it."""
    stats = case.stats()
    model = copy.deepcopy(case.reference).train()
    if not stats:
        assert not any("running" in name for name, _ in model.named_buffers())
        return
    with case.torch.no_grad():
        expected = case.expected(model)
    after = through_files(case, tmp_path, model)
    found, moved = quick(lambda params: case.run(params, Mode(batch_stats=True)))(case.loaded.params)
    for name, value in expected.items():
        # Deviations of small batches divide small differences, which widens float32 rounding.
        np.testing.assert_allclose(found[name], value, atol=1e-3, rtol=1e-3, err_msg=name)
    assert moved.keys() == stats
    for path, value in moved.items():
        np.testing.assert_allclose(value, after[path], atol=1e-5, rtol=1e-4, err_msg=path)
        assert np.abs(value - case.loaded.params[path]).max() > 1e-3, f"{path} did not move"


def test_every_row_of_the_key_map_is_needed(case):
    """Without it, loading fails and names the parameter."""
    checkpoint, source = case.loaded._checkpoint, case.loaded._source
    params, tensors = case.loaded.params, WeightFiles(case.folder).tensors
    indices = checkpoint.config.indices()
    for row in source.rules:
        paths = [path for rule in row.expand(indices) for path in rule.params if path in params]
        if paths:
            without = dataclasses.replace(source, rules=tuple(rule for rule in source.rules if rule is not row))
            with pytest.raises(UserError, match="found no tensor") as error:
                match_tensors(without, indices, tensors, params, (), "file")
            assert paths[0] in str(error.value)


def test_swapped_rows_change_the_outputs(case):
    """So that the comparison above would notice two rows of one shape in each other's place."""
    params, indices, stats = case.loaded.params, case.loaded._checkpoint.config.indices(), case.stats()

    def forward(params):
        # Compiled already, to compare the outputs.
        return case.loaded._forward(params, case.loaded._inputs(case.batch))

    before, groups = forward(params), {}
    for row in case.loaded._source.rules:
        paths = tuple(path for rule in row.expand(indices) for path in rule.params if path in params)
        if paths:
            groups.setdefault(tuple((path in stats, params[path].shape) for path in paths), []).append(paths)
    for rows in groups.values():
        for one, other in itertools.pairwise(rows):
            swap = {**dict(zip(one, other)), **dict(zip(other, one))}
            after = forward({path: params[swap.get(path, path)] for path in params})
            same = all(np.allclose(after[name], before[name], atol=1e-3) for name in before)
            assert not same, f"{one[0]} and {other[0]} may be swapped"


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_has_the_parameters_of_transformers(family, hf, tmp_path):
    """BERT-base, ViT-B/16, ResNet-50: tensor for tensor the same sizes, without allocating any."""
    torch, transformers = hf
    cls = getattr(transformers, classes(family)[0])
    config = cls.config_class(**getattr(tiny(family), "FULL", {}))
    with torch.device("meta"):
        model = cls(config)
    kept = [b for name, b in model.named_buffers() if "running" in name]
    unused = getattr(tiny(family), "UNUSED", ())
    used = [tensor for name, tensor in model.named_parameters() if not name.endswith(unused)]
    expected = sorted(tensor.numel() for tensor in [*used, *kept])

    published_fields = {**json.loads(config.to_json_string()), "architectures": [cls.__name__]}
    checkpoint = loading.from_config(published_fields)
    head = pretrained.published_head(checkpoint)
    if head is not None:
        checkpoint = checkpoint.for_pool(head[0].pool)
    model = loading.abstract(checkpoint, None if head is None else loading.adder(head[0]))
    _, params = chain.split(model)
    source, found = next(iter(checkpoint.family.SOURCES.values())), []
    for rule in (rule for row in source.rules for rule in row.expand(checkpoint.config.indices())):
        if all(path in params for path in rule.params):
            # As the file has them: a fused tensor is several parameters.
            leaves = tuple(np.broadcast_to(np.float32(0), params[path].shape) for path in rule.params)
            found += [tensor.size for tensor in rule.layout.save(leaves)]
    assert sorted(found) == expected
