# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Blood cells with a CIFAR-10 ResNet-20: platelets, red and white cells from 20 pictures a class, against from scratch.

    python launch.py --config=cells --config.data.path=path/to/bccd_cells \\
        --config.model.pretrained=path/to/resnet20_cifar10

Measured: see README.
"""

from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Train


def config() -> Experiment:
    """The experiment; both paths come from the command line."""
    return Experiment(
        name="cells",
        model=Model(pretrained="resnet20_cifar10", fresh=("head/.*",)),
        data=Data("folder", per_class=20, validation=0.2, augment=("flip", "crop")),
        plan=Plan(preset="full", lr=(("head/.*", 10.0),)),
        optimizer=Optimizer("adamw", learning_rate=1e-3, weight_decay=0.01),
        train=Train(batch_size=20, epochs=60, eval_every=30, eval_batch_size=64),
        baseline={"name": "from scratch", "model.init": "random"},
    )
