# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A small published BERT, written by hand: its names and shapes come from no code of ours."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

D, HIDDEN, CLASSES = 64, 256, 3
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": 32,
    "hidden_size": D,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 16,
    "id2label": {str(i): f"class {i}" for i in range(CLASSES)},
}
_LAYER = "bert.encoder.layer.0"
SHAPES = {
    "bert.embeddings.word_embeddings.weight": (32, D),
    "bert.embeddings.position_embeddings.weight": (16, D),
    "bert.embeddings.token_type_embeddings.weight": (2, D),
    "bert.embeddings.LayerNorm.weight": (D,),
    "bert.embeddings.LayerNorm.bias": (D,),
    **{f"{_LAYER}.attention.self.{name}.weight": (D, D) for name in ("query", "key", "value")},
    **{f"{_LAYER}.attention.self.{name}.bias": (D,) for name in ("query", "key", "value")},
    f"{_LAYER}.attention.output.dense.weight": (D, D),
    f"{_LAYER}.attention.output.dense.bias": (D,),
    f"{_LAYER}.attention.output.LayerNorm.weight": (D,),
    f"{_LAYER}.attention.output.LayerNorm.bias": (D,),
    f"{_LAYER}.intermediate.dense.weight": (HIDDEN, D),
    f"{_LAYER}.intermediate.dense.bias": (HIDDEN,),
    f"{_LAYER}.output.dense.weight": (D, HIDDEN),
    f"{_LAYER}.output.dense.bias": (D,),
    f"{_LAYER}.output.LayerNorm.weight": (D,),
    f"{_LAYER}.output.LayerNorm.bias": (D,),
    "bert.pooler.dense.weight": (D, D),
    "bert.pooler.dense.bias": (D,),
    "classifier.weight": (CLASSES, D),
    "classifier.bias": (CLASSES,),
}


@pytest.fixture(scope="session")
def tensors() -> dict[str, np.ndarray]:
    """float32 values of every tensor."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def publish(tmp_path, tensors):
    """A function that writes a folder: `publish(tensors, **fields of config.json)`."""

    def write(values=tensors, name="bert", **config):
        folder = tmp_path / name
        folder.mkdir()
        save_file(dict(values), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
        return folder

    return write
