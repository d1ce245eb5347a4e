# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Your own pictures: one folder a class, and any ViT or ResNet checkpoint.

    python launch.py --config=images --config.data.path=photos --config.model.pretrained=DIR-OR-HUB-ID
    python launch.py --config=images --config.data.path=photos --config.model.pretrained=DIR-OR-HUB-ID \\
        --config.plan.preset=linear_probe --config.optimizer.learning_rate=1e-3

photos/cat/*.jpg, photos/dog/*.jpg are split into train, validation and test, stratified by class; photos/train/cat/…,
photos/test/cat/… are taken as they are. Size, mean and deviation are those that the checkpoint publishes.
"""

from tl_jax.config import Data, Experiment, Model, Optimizer, Plan, Train


def config() -> Experiment:
    """The experiment; `model.pretrained` and `data.path` come from the command line."""
    return Experiment(
        name="images",
        model=Model(pretrained="google/vit-base-patch16-224-in21k", fresh=("head/.*",)),
        data=Data("folder", augment=("flip",)),
        plan=Plan(preset="full", lr=(("head/.*", 10.0),), layer_decay=0.75),
        optimizer=Optimizer("adamw", learning_rate=1e-4, weight_decay=0.05),
        train=Train(batch_size=32, epochs=5, patience=3),
    )
