# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Configs: loaded, overridden, checked, written and read again."""

import dataclasses
import json
import subprocess
import sys

import pytest

from tl_jax import config
from tl_jax.config import Experiment, Model, Plan, Train
from tl_jax.core import config_files
from tl_jax.core.errors import UserError

_GOOD = Experiment(model=Model(family="bert"), train=Train(epochs=2))


def written(tmp_path, body, name="c.py"):
    """A Python config whose function returns `body`."""
    path = tmp_path / name
    path.write_text(f"from tl_jax.config import *\n\n\ndef config():\n    return {body}\n")
    return path


def test_overrides_reach_every_depth_as_the_right_type():
    """Text from a command line and values from Python alike; the original stays."""
    exp = config.override(
        _GOOD,
        {
            "seed": "3",
            "train.batch_size": 64,
            "optimizer.learning_rate": "1",
            "plan.train": "head/.*",
            "optimizer.options.b2": "0.98",
            "model.config": "{'hidden_size': 8}",
            "plan.dropout": "none",
        },
    )
    assert (exp.seed, exp.train.batch_size, exp.optimizer.learning_rate) == (3, 64, 1.0)
    assert isinstance(exp.optimizer.learning_rate, float)
    assert exp.plan.train == ("head/.*",) and exp.plan.dropout == "none"
    assert exp.optimizer.options == {"b2": 0.98} and exp.model.config == {"hidden_size": 8}
    assert _GOOD.seed == 0 and _GOOD.optimizer.options == {}


def test_wrong_overrides_are_told_together():
    """One line with each field, what was found, and the nearest name."""
    with pytest.raises(UserError) as error:
        config.override(_GOOD, {"train.step": 3, "train.batch_size": "1.5", "train": 1, "nothing.at.all": 1})
    text = str(error.value)
    assert "train.step: no such field; did you mean 'steps'?" in text
    assert "train.batch_size is 1.5 (float), must be int" in text
    assert "train: is a section" in text and "nothing.at.all: no such field" in text and "\n" not in text


def test_fields_below_a_plain_value_are_refused():
    """`train.steps.x`, and a section that is not set."""
    with pytest.raises(UserError, match="steps has no fields"):
        config.override(dataclasses.replace(_GOOD, train=Train(steps=3)), {"train.steps.x": 1})
    with pytest.raises(UserError, match="not set"):
        config.override(_GOOD, {"pretrain.train.steps": 1})


@pytest.mark.parametrize("prefix", ["", "pretrain."])
def test_steps_and_epochs_replace_each_other(prefix):
    """The one that is given wins, there and nowhere else."""
    exp = dataclasses.replace(_GOOD, pretrain=_GOOD)

    def train(exp):
        return (exp.pretrain if prefix else exp).train

    by_steps = config.override(exp, {f"{prefix}train.steps": "7"})
    assert (train(by_steps).steps, train(by_steps).epochs) == (7, None)
    by_epochs = config.override(by_steps, {f"{prefix}train.epochs": 1})
    assert (train(by_epochs).steps, train(by_epochs).epochs) == (None, 1.0)
    other = by_steps if prefix else by_steps.pretrain
    assert other.train.epochs == 2


def test_steps_and_epochs_together_are_refused():
    """Neither is dropped in silence."""
    both = config.override(_GOOD, {"train.steps": 7, "train.epochs": 1})
    with pytest.raises(UserError, match="exactly one of epochs and steps"):
        config.validate(both)


@pytest.mark.parametrize("name", sorted(config_files.shipped()))
def test_shipped_config_loads_by_name_and_comes_back_from_json(name, tmp_path):
    """It validates, and its `config.json` says the same, by its own path or its folder's."""
    written = config.to_dict(config.load(name))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(written))
    assert config.to_dict(config.load(path)) == written == config.to_dict(config.load(tmp_path))


def test_quickstart_is_shipped():
    """The command without arguments runs it."""
    assert "quickstart" in config_files.shipped()


def test_json_round_trip_keeps_nested_experiments():
    """Tuples come back as tuples, sections as sections."""
    plan = Plan(train=("a",), lr=(("head/.*", 10.0),), batchnorm=((".*", "stats"),))
    exp = dataclasses.replace(_GOOD, plan=plan, pretrain=_GOOD, baseline={"model.init": "random"})
    assert config.from_dict(json.loads(json.dumps(config.to_dict(exp)))) == exp


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"seed": 1, "train": {"steps": 1, "steps": 2}}', "duplicate keys steps"),
        ('{"seed": 1,}', "not JSON, .* at line 1"),
        ("[1]", "holds a list, an object was expected"),
        ('{"sed": 1}', "sed: no such field; did you mean 'seed'"),
        ('{"train": {"batch_size": "32"}}', "train.batch_size is '32' .str., must be int"),
        ('{"train": {"batch_size": 32.0}}', "train.batch_size is 32.0 .float., must be int"),
    ],
)
def test_bad_json_is_refused_with_its_file(tmp_path, text, message):
    """One line that begins with the file, or names the field."""
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        config.load(path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "body,message",
    [
        ("Experiment(model=Model(family='bert'), train=Train(steps='3'))", "train.steps is '3' .str., must be int"),
        ("Experiment(model=Model(fresh='head/.*'), train=Train(steps=3))", "model.fresh is 'head/.\\*'"),
        ("Experiment(tran=Train(steps=3))", "TypeError: .*tran"),
        ("3", "returned int, an Experiment was expected"),
        ("undefined", "NameError"),
        ("__import__('no_such_package')", "no_such_package"),
        ("[][0]", "IndexError"),
    ],
)
def test_wrong_python_config_is_one_line(tmp_path, body, message):
    """A dataclass checks nothing by itself; what goes wrong in the file is told with the file's name."""
    with pytest.raises(UserError, match=message) as error:
        config.load(written(tmp_path, body))
    assert "c.py" in str(error.value) and "\n" not in str(error.value)


def test_config_without_the_function_is_refused(tmp_path):
    """The message says what a config is."""
    path = tmp_path / "c.py"
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match="config.. -> Experiment"):
        config.load(path)


@pytest.mark.parametrize("source", ["quickstar", "no/such.py", "no/such.json"])
def test_missing_config_is_refused(source):
    """The shipped names are offered."""
    with pytest.raises(UserError, match="quickstart"):
        config.load(source)


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"train.batch_size": 0}, "train.batch_size is 0"),
        ({"train.accumulate": 3}, "not divisible"),
        ({"train.epochs": 0}, "train.epochs is 0"),
        ({"train.epochs": float("inf")}, "train.epochs is inf"),
        ({"optimizer.learning_rate": float("nan")}, "learning_rate"),
        ({"optimizer.weight_decay": -1}, "weight_decay"),
        ({"optimizer.warmup": 1}, "warmup"),
        ({"optimizer.clip_norm": 0}, "clip_norm"),
        ({"data.validation": 0.5, "data.test": 0.5}, "something to train on"),
        ({"plan.preset": "last_n"}, "plan.n"),
        ({"plan.n": 2}, "plan.n"),
        ({"plan.layer_decay": 1.5}, "layer_decay"),
        ({"plan.lowest_lr": 0}, "lowest_lr"),
        ({"plan.layer_decay": 0.5, "plan.lowest_lr": 0.5}, "one of layer_decay and lowest_lr"),
        ({"plan.lr": ((".*", -1.0),)}, "plan.lr"),
        ({"mesh.fsdp": -1}, "mesh"),
        ({"mesh.data": 0}, "mesh"),
        ({"data.buckets": (128,)}, "buckets"),
        ({"model.family": None}, "give pretrained"),
    ],
)
def test_values_that_cannot_work_are_refused(overrides, message):
    """Each is named; alone it is the only complaint."""
    with pytest.raises(UserError, match=message) as error:
        config.validate(config.override(_GOOD, overrides))
    assert ";" not in str(error.value)


def test_all_wrong_values_are_told_at_once():
    """Also those of the experiment that comes first."""
    with pytest.raises(UserError, match="log_every.*warmup"):
        config.validate(config.override(_GOOD, {"train.log_every": 0, "optimizer.warmup": 2}))
    with pytest.raises(UserError, match="pretrain.*steps is 0"):
        config.validate(dataclasses.replace(_GOOD, pretrain=config.override(_GOOD, {"train.steps": 0})))


def test_options_of_a_plug_in_are_checked_like_fields():
    """Types and nearest names."""

    @dataclasses.dataclass(frozen=True)
    class Options:
        column: str = "text"

    assert config.parse_options(Options, {"column": "a"}, "data.options") == Options("a")
    with pytest.raises(UserError, match="data.options.colum: no such field; did you mean 'column'"):
        config.parse_options(Options, {"colum": "a"}, "data.options")


def test_reading_a_config_imports_no_jax():
    """Neither does the package itself: help and a config's errors come at once."""
    code = (
        "import sys, tl_jax; from tl_jax import config; config.load('quickstart', {'train.steps': '3'});"
        "heavy = {'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'orbax', 'grain'} & set(sys.modules);"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
