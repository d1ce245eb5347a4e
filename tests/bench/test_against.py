# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The comparison with PyTorch is one of the same work: same loss, same parameters, or no ratio. Nothing is timed."""

import importlib
import json
import pathlib

import jax
import makers
import pytest
import references

from tl_jax.bench import against, against_torch, peak, report, step
from tl_jax.config import Adapter, Data, Experiment, Model, Plan, Task, Train
from tl_jax.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")

_LORA = Plan(adapters=((r"blocks/\d+/attn/(query|key|value)/kernel", Adapter("lora", rank=2)),))
_BERT = {"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SIZES = {
    "bert": {**_BERT, "intermediate_size": 32, "max_position_embeddings": 12},
    "gpt2": {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12},
    "resnet": {
        "model_type": "resnet",
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "embedding_size": 8,
        "layer_type": "basic",
    },
}
_TASKS = {"gpt2": "language_model"}
# Sums of a few hundred float32 in another order.
_CLOSE = {"float32": 1e-5, "bfloat16": 2e-2}


def experiment(family: str, plan: Plan, **model) -> Experiment:
    """A network from scratch that draws dropout, unless it is told not to."""
    return Experiment(
        model=Model(family=family, config=_SIZES[family], **model),
        task=Task(_TASKS.get(family, "classification")),
        data=Data(max_length=10, image_size=32),
        plan=plan,
        train=Train(batch_size=4, steps=5),
    )


def prepared(exp: Experiment, folder):
    """(engine, state, batch, request to the other side)."""
    engine = step.bench_engine(against.without_dropout(exp), num_classes=3)
    state, batch = engine.init(), step.first_batch(engine)
    return engine, state, batch, against.publish(engine, state, batch, folder) | {"threads": None}


def first_loss(engine, state, batch) -> float:
    """Of the step's own objective; the whole step takes three times as long to compile."""
    objective = engine.step.objective

    def loss(state, batch):
        crossing = objective.prefix(state.frozen, batch)
        total, counted = objective.loss(state.trained, state.frozen, state.stats, crossing, batch, state.key)
        return total / counted.weight

    return float(jax.jit(loss)(state, batch))


@pytest.mark.parametrize(
    "family,plan,dtype",
    [
        ("bert", Plan("last_n", n=1), "float32"),
        ("bert", _LORA, "float32"),
        ("gpt2", Plan("full"), "bfloat16"),
        ("resnet", Plan("full"), "float32"),
    ],
)
def test_both_sides_do_the_same(family, plan, dtype, tmp_path):
    """Random weights that went through the published files: the loss of the first step, and how many numbers train."""
    references.quiet("torch", "transformers", "peft")
    *ours, request = prepared(experiment(family, plan, dtype=dtype), tmp_path)
    other = against_torch.Bench(request)
    theirs = other.run("eager", 1)
    assert theirs["loss"] == pytest.approx(first_loss(*ours), rel=_CLOSE[dtype])
    trained = sum(leaf.size for leaf in ours[1].trained.values())
    assert other.ready()["ready"] == trained and len(theirs["seconds"]) == 1


def test_a_step_moves_what_trains_and_nothing_else(tmp_path):
    """In PyTorch too: the head, no other parameter, and no running statistics below it."""
    torch, _ = references.quiet("torch", "transformers")
    other = against_torch.Bench(prepared(experiment("resnet", Plan("linear_probe")), tmp_path)[-1])
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    other.run("eager", 2)
    moved = {name for name, tensor in other.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"classifier.1.weight", "classifier.1.bias"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the command line says of both sides, PyTorch in its own process, `torch.compile` switched off by its own
    switch, which leaves the function as it is."""
    home = tmp_path_factory.mktemp("against")
    exp = makers.write_config(experiment("resnet", Plan("linear_probe")), home / "exp.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "_SIZES", (64,))
        patch.setattr(against, "limit_threads", lambda threads: None)
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        words = ("--synthetic", "--against=torch", "--threads=1", "--steps=2", "--repeats=2", "--json")
        code, out, err = makers.cli_run("bench", f"--config={exp}", *words)
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def test_the_json_has_both_sides(found):
    """Times of each, ratios with their spread, the losses' difference, versions, and what both had in common."""
    beside = found["against"]
    assert beside["agree"] and beside["loss_difference"] < 1e-5 and beside["reasons"] == {}
    assert set(beside["versions"]) == {"torch", "transformers"}
    assert (beside["repeats"], beside["threads"]) == (2, 1)
    for mode in against.MODES:
        assert set(beside[mode]) == {"step_ms", "ratio", "ratios"} and beside[mode]["ratio"] > 0
        low, high = beside[mode]["ratios"]
        assert 0 < low <= high


def test_the_table_has_both_sides(found):
    """A row each, and the difference of the losses."""
    text = report._beside(found["against"])
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:5]] == [
        "tl_jax",
        "PyTorch, eager",
        "PyTorch, compiled",
    ]
    assert "no dropout, 1 threads each" in text and "Losses of the first step differ by" in text


class Answers(against.Torch):
    """The other side as a list of answers."""

    def __init__(self, engine, *answers):
        self._engine, self._answers, self.asked = engine, list(answers), []
        self.reasons, self.loss, self.versions = {}, None, {}

    def _ask(self, line):
        self.asked.append(line["mode"])
        return self._answers.pop(0)


class Ours:
    """Our side with known times: 2 ms, then 4 ms."""

    loss = 1.0

    def __init__(self):
        self.times = [[0.002] * 3, [0.004] * 3]

    def run(self, steps):
        return self.times.pop(0), []


@pytest.fixture(scope="module")
def engine():
    """Only its config is asked."""
    return step.bench_engine(experiment("resnet", Plan("full")), num_classes=2)


def test_ratios_are_those_of_medians(engine):
    """Rounds in turn; above 1 where PyTorch takes longer."""
    rounds = [{"seconds": [seconds] * 3, "loss": 1.0} for seconds in (0.006, 0.008)]
    other = Answers(engine, {"seconds": [1.0], "loss": 1.0005}, {"failed": "no compiler"}, *rounds)
    other.warm_up(1)
    found = other.in_turn(Ours(), steps=3, repeats=2)
    assert found["eager"]["ratio"] == pytest.approx(7 / 3) and found["eager"]["ratios"] == pytest.approx([2.0, 3.0])
    assert found["eager"]["step_ms"]["median"] == pytest.approx(7.0)
    assert other.asked == ["eager", "compiled", "eager", "eager"]


def test_what_fails_is_blank_with_its_reason(engine):
    """`torch.compile` without a compiler: no figure, and why."""
    timed = {"seconds": [0.006] * 3, "loss": 1.0}
    other = Answers(engine, timed, {"failed": "RuntimeError: no compiler"}, timed, timed)
    other.warm_up(3)
    found = other.in_turn(Ours(), steps=3, repeats=2) | {"threads": None}
    assert found["compiled"] == {"step_ms": None, "ratio": None, "ratios": None}
    assert "PyTorch, compiled, failed: RuntimeError: no compiler" in report._beside(found)


def test_other_work_gets_no_ratio(engine):
    """Times stay, ratios do not, and the table says why."""
    timed = {"seconds": [0.006] * 3, "loss": 1.01}
    other = Answers(engine, timed, {"failed": "x"}, timed, timed)
    other.warm_up(3)
    found = other.in_turn(Ours(), steps=3, repeats=2) | {"threads": 2}
    assert not found["agree"] and found["eager"]["ratio"] is found["eager"]["ratios"] is None
    assert "not the same work, so there is no ratio" in report._beside(found)


def test_a_part_of_a_tensor_cannot_train_there(tmp_path):
    """GPT-2 keeps queries, keys and values in one."""
    exp = experiment("gpt2", Plan(train=("blocks/0/attn/query/kernel",)))
    with pytest.raises(UserError, match="a part of what is one tensor in PyTorch"):
        prepared(exp, tmp_path)


def test_what_has_no_counterpart_is_told_at_once():
    """One line for all of it."""
    exp = makers.changed(experiment("bert", Plan("full")), optimizer__name="lion", train__ema=0.9, train__accumulate=2)
    with pytest.raises(UserError, match=r"optimizer\.name=lion; train\.accumulate=2; train\.ema"):
        against.without_dropout(exp)


@pytest.mark.parametrize("asked,message", [({"repeats": 0}, "--repeats"), ({"against": "jax"}, "must be torch")])
def test_wrong_flags_are_refused(asked, message):
    """Before anything is built."""
    with pytest.raises(UserError, match=message):
        report.bench(experiment("bert", Plan("full")), report.Asked(**asked))


def test_only_that_program_imports_pytorch():
    """The package needs none of it, and the program nothing of the package."""
    source = importlib.util.find_spec("tl_jax.bench.against_torch").origin
    text = pathlib.Path(source).read_text()
    assert "import torch" in text and "from tl_jax" not in text and "import tl_jax" not in text
    assert not hasattr(against, "torch") and not hasattr(against_torch, "torch")


def test_threads_beyond_the_cores_are_refused():
    """Before any are taken away."""
    with pytest.raises(UserError, match="must be from 1 to"):
        against.limit_threads(10_000)
