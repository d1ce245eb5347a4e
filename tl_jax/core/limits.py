# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Values of a config that have the right type and still cannot work.

    mistakes(exp)      # ["train: give exactly one of epochs and steps", …]

What only the data or the network can tell (a pattern that matches nothing, a metric that a task has not) is told by
those who know it. Knows the fields of `config.Experiment` by name alone.
"""

import math
from typing import Any


def mistakes(exp: Any) -> list[str]:
    """One line a mistake, with the field's name and what it must be."""
    train, data, opt, plan = exp.train, exp.data, exp.optimizer, exp.plan
    wrong = []

    def need(condition: bool, text: str):
        if not condition:
            wrong.append(text)

    need((train.epochs is None) != (train.steps is None), "train: give exactly one of epochs and steps")
    for name in ("batch_size", "accumulate", "log_every"):
        need(getattr(train, name) >= 1, f"train.{name} is {getattr(train, name)}, must be at least 1")
    for name in ("epochs", "steps", "eval_batch_size", "eval_every", "save_every", "patience"):
        value = getattr(train, name)
        need(value is None or 0 < value < math.inf, f"train.{name} is {value}, must be above 0 and finite")
    for name in ("mixup", "cutmix", "l2_sp", "l2_sp_fresh"):
        value = getattr(train, name)
        need(0 <= value < math.inf, f"train.{name} is {value}, must be at least 0 and finite")
    need(0 <= train.ema < 1, f"train.ema is {train.ema}, must be in [0, 1)")
    need(train.l2_sp > 0 or not train.l2_sp_fresh, "train.l2_sp_fresh goes with train.l2_sp, and only with it")
    need(
        train.batch_size % max(train.accumulate, 1) == 0,
        f"train.batch_size {train.batch_size} is not divisible by train.accumulate {train.accumulate}",
    )
    need(math.isfinite(opt.learning_rate) and opt.learning_rate > 0, "optimizer.learning_rate must be above 0")
    need(math.isfinite(opt.weight_decay) and opt.weight_decay >= 0, "optimizer.weight_decay must be at least 0")
    need(0 <= opt.warmup < 1, f"optimizer.warmup is {opt.warmup}, a share of all steps in [0, 1)")
    need(0 <= opt.final <= 1, f"optimizer.final is {opt.final}, a share of the peak in [0, 1]")
    need(opt.clip_norm is None or opt.clip_norm > 0, "optimizer.clip_norm must be above 0 or None")
    need(
        data.validation >= 0 and data.test >= 0 and data.validation + data.test < 1,
        "data.validation and data.test must leave something to train on",
    )
    need(data.max_length >= 2, "data.max_length must be at least 2")
    need(data.threads >= 0, "data.threads must be at least 0")
    need(data.per_class is None or data.per_class >= 1, "data.per_class must be at least 1")
    need(data.image_size is None or data.image_size >= 1, "data.image_size must be at least 1")
    need(all(0 < b < data.max_length for b in data.buckets), "data.buckets must lie between 0 and data.max_length")
    need(plan.layer_decay is None or 0 < plan.layer_decay <= 1, "plan.layer_decay must be in (0, 1]")
    need((plan.preset == "last_n") == (plan.n is not None), "plan.n goes with plan.preset=last_n, and only with it")
    need(plan.n is None or plan.n >= 1, "plan.n must be at least 1")
    need(plan.preset == "lora" or plan.rank is None, "plan.rank goes with plan.preset=lora, and only with it")
    need(plan.rank is None or plan.rank >= 1, "plan.rank must be at least 1")
    for pattern, adapter in plan.adapters:
        at = f"plan.adapters: {adapter.kind} on {pattern!r}"
        low = adapter.kind in ("lora", "dora")
        need(adapter.rank >= 1, f"{at} has rank {adapter.rank}, must be at least 1")
        need(adapter.alpha is None or 0 < adapter.alpha < math.inf, f"{at} has alpha {adapter.alpha}, must be above 0")
        need(low or (adapter.alpha is None and not adapter.use_rslora), f"{at} has no alpha and no use_rslora")
        need(adapter.kind == "ia3" or not adapter.feedforward, f"{at} has no feedforward")
    need(all(v >= 0 for _, v in plan.lr), "plan.lr has a negative multiple")
    need(all(v >= 0 for _, v in plan.decay), "plan.decay has a negative weight decay")
    axes = (exp.mesh.data, exp.mesh.fsdp, exp.mesh.tensor)
    need(all(a >= 1 or a == -1 for a in axes) and axes.count(-1) <= 1, "mesh: axes are at least 1, one may be -1")
    need(
        bool(exp.model.pretrained or exp.model.family or exp.pretrain),
        "model: give pretrained (a directory or hub id), or family and config for a network of your own",
    )
    return wrong
