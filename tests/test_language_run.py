# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A network that writes, from texts without labels to what it writes."""

import makers
import numpy as np
import pytest

from tl_jax import apply, runs
from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Task, Train

pytestmark = pytest.mark.usefixtures("one_device")

SIZES = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "eos_token_id": None, "bos_token_id": None}


def test_texts_are_learnt_and_gone_on_with(tmp_path):
    """Words in a fixed order: the test's perplexity falls to that of what cannot be known, the length, and a prompt is
    continued in that order."""
    model = makers.network(tmp_path / "gpt2", {"model_type": "gpt2", "vocab_size": 32, **SIZES})
    lines = [" ".join(f"word{n % 8}" for n in range(start, start + 12)) for start in range(8)] * 8
    (tmp_path / "all.txt.tsv").write_text("\n".join(["text", *lines]))
    exp = Experiment(
        name="language",
        model=Model(model),
        task=Task("language_model"),
        data=Data("table", path=str(tmp_path / "all.txt.tsv"), options={"label": None}, max_length=16, threads=0),
        plan=Plan("full"),
        optimizer=Optimizer(learning_rate=1e-2),
        train=Train(batch_size=8, epochs=12),
    )
    summary = runs.run(exp, tmp_path / "run", quiet=True)
    assert summary["metric"] == "loss" and summary["test"]["perplexity"] < 1.5
    assert summary["details"]["words"] == 13 * summary["examples"]["test"]
    again = apply.evaluate_run(str(tmp_path / "run"), str(tmp_path / "all.txt.tsv"))["metrics"]
    assert again["perplexity"] == pytest.approx(summary["test"]["perplexity"], rel=0.2)
    writer = runs.load_run(tmp_path / "run")
    ids = makers.token_ids(model, "word3 word4 word5")[:, :-1]  # Without the token that ends a text.
    expected = makers.token_ids(model, "word6 word7 word0 word1")[:, 1:-1]
    np.testing.assert_array_equal(writer.generate({"input_ids": ids}, max_new_tokens=4), expected)
