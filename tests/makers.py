# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny things to run: checkpoints, data and experiments that train in a second or two.

    exp = makers.text_run(tmp_path)                            # a BERT, three classes told by one word
    exp = makers.image_run(tmp_path)                           # a ResNet with BatchNorm, images told by their colour
    code, out, err = makers.cli_run("train", "--config=x.json")      # in this process

Nothing is downloaded, and nothing is random but what a seed of 0 gives.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
from absl import flags

from tl_jax import cli, config, loading, pretrained
from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Task, Train
from tl_jax.core import chain

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASSES = ("animal", "fruit", "metal")
_TELLING = ("cat", "apple", "iron")
_OTHERS = [f"word{i}" for i in range(24)]
RESNET = {"model_type": "resnet", "stem": "cifar", "depths": [1, 1], "hidden_sizes": [8, 16]}


def bert(folder: pathlib.Path, **changes) -> str:
    """A BERT from scratch with its tokenizer, as transformers would publish it; returns the folder's name."""
    published = {"model_type": "bert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}
    published |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32, **changes}
    return network(folder, published)


def network(folder: pathlib.Path, published: dict) -> str:
    """A network for texts from scratch, with the tokenizer of `bert`."""
    _save(published, folder)
    _tokenizer(folder)
    return str(folder)


def token_ids(folder: str, text: str) -> np.ndarray:
    """int[1, T]."""
    from tokenizers import Tokenizer

    return np.array([Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids])


def resnet(folder: pathlib.Path, **changes) -> str:
    """A ResNet from scratch for images of 8 x 8 pixels."""
    _save({**RESNET, "image_size": 8, **changes}, folder)
    return str(folder)


def texts(file: pathlib.Path, count: int = 60) -> str:
    """A table of texts of 3 to 14 words, one of which tells the class, and the author of each."""
    rng = np.random.default_rng(0)
    lines = ["text\tlabel\tauthor"]
    for i in range(count):
        words = [*rng.choice(_OTHERS, rng.integers(2, 14)), _TELLING[i % 3]]
        lines.append(f"{' '.join(rng.permutation(words))}\t{CLASSES[i % 3]}\tauthor{i // 3 % 7}")
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def pixels(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """uint8[N, 8, 8, 3] images of which one colour is bright, and int64[N] which."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = rng.integers(0, 120, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 100
    return images.astype(np.uint8), labels


def images(file: pathlib.Path, count: int = 60) -> str:
    """`pixels` as an .npz file."""
    x, y = pixels(count)
    np.savez(file, x=x, y=y)
    return str(file)


def image_folder(folder: pathlib.Path, count: int = 30) -> str:
    """`pixels` as PNG files in folders named after their class."""
    from PIL import Image

    for i, (image, label) in enumerate(zip(*pixels(count))):
        (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / CLASSES[label] / f"{i}.png")
    return str(folder)


def text_run(folder: pathlib.Path, **train) -> Experiment:
    """Fine-tuning of `bert` on `texts`, with dropout and buckets: 42 texts to train on, 6 steps an epoch."""
    if not (folder / "bert").exists():
        bert(folder / "bert")
        texts(folder / "texts.tsv")
    return Experiment(
        name="texts",
        model=Model(str(folder / "bert"), fresh=("head/.*",)),
        task=Task(options={"pool": "mean"}),
        data=Data("table", path=str(folder / "texts.tsv"), max_length=16, buckets=(8,), threads=0),
        plan=Plan("full", lr=(("head/.*", 2.0),)),
        optimizer=Optimizer(learning_rate=1e-2),
        train=dataclasses.replace(Train(batch_size=8, epochs=2, log_every=2), **train),
    )


def image_run(folder: pathlib.Path, **train) -> Experiment:
    """Training of a ResNet from scratch on `images`, with augmentation, accumulation and BatchNorm."""
    if not (folder / "images.npz").exists():
        images(folder / "images.npz")
    return Experiment(
        name="images",
        model=Model(family="resnet", config=RESNET),
        data=Data("npz", path=str(folder / "images.npz"), image_size=8, augment=("flip", "crop"), threads=2),
        plan=Plan("full"),
        optimizer=Optimizer(learning_rate=1e-2),
        train=dataclasses.replace(Train(batch_size=16, epochs=3, log_every=1, accumulate=2), **train),
    )


def changed(exp: Experiment, **overrides) -> Experiment:
    """`exp` with fields replaced; `__` stands for the dot."""
    return config.override(exp, {name.replace("__", "."): value for name, value in overrides.items()})


def write_config(exp: Experiment, file: pathlib.Path) -> str:
    """The experiment as a data-only config; returns the file's name."""
    file.write_text(json.dumps(config.to_dict(exp)))
    return str(file)


def cli_run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line, in this process."""
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli._main(cli._parse(["launch.py", *words]))
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process that finds the package and these makers, and simulates this many devices."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"}
    return {**env, "JAX_NUM_CPU_DEVICES": str(devices)}


def start(*command: str, devices: int = 1) -> subprocess.Popen:
    """A Python process with these arguments."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(devices),
        cwd=ROOT,
    )


def finish(*processes: subprocess.Popen, timeout: float = 120) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each; none outlives this call."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _save(published: dict, folder: pathlib.Path) -> None:
    checkpoint = loading.from_config(published)
    model = loading.abstract(checkpoint)
    loaded = loading.load(checkpoint, model, key=jax.random.key(0))
    chain.merge_into(model, loaded.params)
    pretrained.Pretrained(model, checkpoint, loaded, published).save(folder)


def _tokenizer(folder: pathlib.Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_TELLING, *_OTHERS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
