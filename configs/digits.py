# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A small network learns the digits 0 to 4 and moves to 5 to 9 with ten examples a class, in seconds.

    python launch.py --config=digits

The first experiment runs in the folder `pretrain` of the workdir; scikit-learn carries the images. It shows how one run
follows another, and what a baseline is for: five digits teach so small a network too little, and it tells.
"""

from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Train

_NETWORK = {
    "model_type": "resnet",
    "stem": "cifar",
    "num_channels": 1,
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
}


def _digits(*classes: int, per_class: int | None = None, test: float = 0.2) -> Data:
    return Data("digits", options={"classes": classes}, image_size=8, per_class=per_class, test=test)


def config() -> Experiment:
    """The experiment."""
    source = Experiment(
        name="digits 0-4",
        model=Model(family="resnet", config=_NETWORK),
        data=_digits(0, 1, 2, 3, 4),
        plan=Plan(preset="full"),
        optimizer=Optimizer("adamw", learning_rate=1e-2),
        train=Train(batch_size=64, steps=80),
    )
    return Experiment(
        name="digits",
        pretrain=source,
        model=Model(fresh=("head/.*",)),
        data=_digits(5, 6, 7, 8, 9, per_class=10, test=0.5),
        plan=Plan(preset="full"),
        optimizer=Optimizer("adamw", learning_rate=3e-3),
        train=Train(batch_size=50, steps=30, eval_batch_size=64, eval_every=10),
        baseline={"name": "from scratch", "model.init": "random"},
    )
