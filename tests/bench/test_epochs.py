# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs beside PyTorch: the same number of steps on both sides. Nothing is timed."""

import json

import pytest

from tl_jax.bench import against, epochs
from tl_jax.core.errors import UserError
from tl_jax.resident import Resident

pytestmark = pytest.mark.usefixtures("one_device")

_BERT = {"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def words(folder, plan: str) -> list[str]:
    """The command's words for 12 examples in batches of 4, and 3 epochs of them."""
    network = {**_BERT, "intermediate_size": 32, "max_position_embeddings": 12}
    exp = {
        "model": {"family": "bert", "init": "random", "config": network},
        "task": {"name": "classification"},
        "data": {"max_length": 10},
        "plan": {"preset": plan},
        "train": {"batch_size": 4, "steps": 5, "log_every": 4},
    }
    (folder / "exp.json").write_text(json.dumps(exp))
    return [f"--config={folder / 'exp.json'}", "--examples=12", "--epochs=3"]


def test_both_sides_make_all_the_steps(tmp_path, monkeypatch, capsys):
    """Nine here, over what crosses the cut, and nine in PyTorch after those that do not count."""
    made, told = [], []
    ours, theirs = Resident.step, against.Torch._seconds

    def counted(self, state, updates):
        assert "crossing" in self.data.arrays and "input_ids" not in self.data.arrays
        made.append(int(updates.count))
        return ours(self, state, updates)

    def timed(self, mode, steps):
        told.append((mode, steps))
        return theirs(self, mode, steps)

    monkeypatch.setattr(against, "MODES", ("eager",))
    monkeypatch.setattr(against, "limit_threads", lambda threads: None)
    monkeypatch.setattr(Resident, "step", counted)
    monkeypatch.setattr(against.Torch, "_seconds", timed)
    epochs.main(words(tmp_path, "linear_probe"))
    assert sum(made) == 9 and told[-1] == ("eager", 9)
    out = capsys.readouterr().out
    assert "PyTorch, eager" in out and out.endswith("9 steps of 4, 12 examples\n")


def test_what_trains_everything_has_nothing_to_keep(tmp_path, monkeypatch):
    """It is refused before PyTorch starts."""
    monkeypatch.setattr(against, "limit_threads", lambda threads: None)
    with pytest.raises(UserError, match="plan: leaves no block below the cut"):
        epochs.main(words(tmp_path, "full"))
