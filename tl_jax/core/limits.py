# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Values of a config that have the right type and still cannot work.

    mistakes(exp)      # ["train: give exactly one of epochs and steps", …]

What only the data or the network can tell (a pattern that matches nothing, a metric that a task has not) is told by
those who know it. Knows the fields of `config.Experiment` by name alone.
"""

import dataclasses
import math
import re
from typing import Any

from tl_jax.core import typed


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
    views = train.cache_views
    need(views is None or views >= 1, f"train.cache_views is {views}, must be at least 1")
    need(views is None or bool(data.augment), "train.cache_views goes with data.augment, and only with it")
    need(views is None or train.cache != "off", "train.cache_views goes with a cache, and train.cache is off")
    need(
        train.cache_dir is None or train.cache in ("auto", "disk"),
        f"train.cache_dir is a folder on disk, and train.cache is {train.cache}",
    )
    need(0 <= train.ema < 1, f"train.ema is {train.ema}, must be in [0, 1)")
    need(train.l2_sp > 0 or not train.l2_sp_fresh, "train.l2_sp_fresh goes with train.l2_sp, and only with it")
    need(
        train.batch_size % max(train.accumulate, 1) == 0,
        f"train.batch_size {train.batch_size} is not divisible by train.accumulate {train.accumulate}",
    )
    _check_optimizer(opt, "optimizer", need)
    need(
        data.validation >= 0 and data.test >= 0 and data.validation + data.test < 1,
        "data.validation and data.test must leave something to train on",
    )
    need(data.max_length >= 2, "data.max_length must be at least 2")
    need(data.threads >= 0, "data.threads must be at least 0")
    need(data.per_class is None or data.per_class >= 1, "data.per_class must be at least 1")
    need(all(count >= 1 for count in data.class_counts.values()), "data.class_counts must be at least 1")
    need(0 <= data.magnitude <= 30, f"data.magnitude is {data.magnitude}, must be from 0 to 30")
    need(
        "rand" in data.augment or data.magnitude == type(data).magnitude,
        "data.magnitude goes with rand in data.augment, and only with it",
    )
    need(data.image_size is None or data.image_size >= 1, "data.image_size must be at least 1")
    need(
        all(0 < b < data.max_length for b in data.buckets or ()), "data.buckets must lie between 0 and data.max_length"
    )
    need(
        not data.packing or exp.task.name == "language_model",
        f"data.packing puts several texts in a row for task.name=language_model alone, and it is {exp.task.name}",
    )
    need(
        not data.packing or plan.prompt is None,
        "data.packing puts several texts in a row, and plan.prompt stands before one: give one of them",
    )
    _check_plan(plan, "plan", need)
    for name, value in (("plan.quantize", plan.quantize), ("model.frozen_dtype", exp.model.frozen_dtype)):
        random = exp.model.init == "random" or (exp.baseline.get("model.init") == "random" and name not in exp.baseline)
        need(
            value is None or not random,
            f"{name} is for weights that were loaded, model.init=random has none: set {name}=None beside it",
        )
    need(
        exp.model.frozen_dtype in (None, exp.model.dtype),
        "model.frozen_dtype=bfloat16 goes with model.dtype=bfloat16, in which the network then computes the same bits",
    )
    need(
        exp.pretrain is None or exp.pretrain.plan.prompt is None,
        "pretrain.plan.prompt cannot be folded into the network that this run begins from",
    )
    warm, share, features = exp.distill.temperature, exp.distill.weight, exp.distill.features
    need(0 < warm < math.inf, f"distill.temperature is {warm}, must be above 0 and finite")
    need(0 <= share <= 1, f"distill.weight is {share}, a share in [0, 1]")
    need(0 <= features < math.inf, f"distill.features is {features}, must be at least 0 and finite")
    rate = exp.model.drop_path
    need(rate is None or 0 <= rate < 1, f"model.drop_path is {rate}, must be in [0, 1)")
    axes = (exp.mesh.data, exp.mesh.fsdp, exp.mesh.tensor)
    need(all(a >= 1 or a == -1 for a in axes) and axes.count(-1) <= 1, "mesh: axes are at least 1, one may be -1")
    need(
        bool(exp.model.pretrained or exp.model.family or exp.pretrain),
        "model: give pretrained (a directory or hub id), or family and config for a network of your own",
    )
    _check_profile(exp.profile, need)
    _check_phases(exp, need)
    return wrong


def _check_optimizer(opt, at: str, need) -> None:
    need(math.isfinite(opt.learning_rate) and opt.learning_rate > 0, f"{at}.learning_rate must be above 0")
    need(math.isfinite(opt.weight_decay) and opt.weight_decay >= 0, f"{at}.weight_decay must be at least 0")
    need(opt.warmup is None or 0 <= opt.warmup < 1, f"{at}.warmup is {opt.warmup}, a share of all steps in [0, 1)")
    for name in ("initial", "final"):
        value = getattr(opt, name)
        need(value is None or 0 <= value <= 1, f"{at}.{name} is {value}, a share of the peak in [0, 1]")
    need(opt.clip_norm is None or opt.clip_norm > 0, f"{at}.clip_norm must be above 0 or None")


def _check_plan(plan, at: str, need) -> None:
    for name in ("layer_decay", "lowest_lr"):
        need(getattr(plan, name) is None or 0 < getattr(plan, name) <= 1, f"{at}.{name} must be in (0, 1]")
    need(plan.layer_decay is None or plan.lowest_lr is None, f"{at}: give one of layer_decay and lowest_lr, not both")
    need((plan.preset == "last_n") == (plan.n is not None), f"{at}.n goes with plan.preset=last_n, and only with it")
    need(plan.n is None or plan.n >= 1, f"{at}.n must be at least 1")
    need(plan.preset == "lora" or plan.rank is None, f"{at}.rank goes with plan.preset=lora, and only with it")
    need(plan.rank is None or plan.rank >= 1, f"{at}.rank must be at least 1")
    need(plan.prompt is None or plan.prompt >= 1, f"{at}.prompt must be at least 1")
    need(
        plan.prompt is None or not (plan.adapters or plan.preset == "lora"),
        f"{at}: give a prompt or adapters, not both, as PEFT's files hold one of them",
    )
    for pattern, adapter in plan.adapters:
        where = f"{at}.adapters: {adapter.kind} on {pattern!r}"
        low = adapter.kind in ("lora", "dora")
        need(adapter.rank >= 1, f"{where} has rank {adapter.rank}, must be at least 1")
        need(
            adapter.alpha is None or 0 < adapter.alpha < math.inf, f"{where} has alpha {adapter.alpha}, must be above 0"
        )
        need(low or (adapter.alpha is None and not adapter.use_rslora), f"{where} has no alpha and no use_rslora")
        need(0 <= adapter.dropout < 1, f"{where} has dropout {adapter.dropout}, must be in [0, 1)")
        need(low or not adapter.dropout, f"{where} has no dropout")
        need(adapter.kind == "ia3" or not adapter.feedforward, f"{where} has no feedforward")
    need(all(v >= 0 for _, v in plan.lr), f"{at}.lr has a negative multiple")
    need(all(v >= 0 for _, v in plan.decay), f"{at}.decay has a negative weight decay")


def _check_profile(text: str | None, need) -> None:
    found = re.fullmatch(r"(\d+):(\d+)", text or "1:1")
    right = found is not None and 1 <= int(found[1]) <= int(found[2])
    need(right, f"profile is {text!r}, must be FIRST:LAST, steps counted from 1, such as 10:15")


def _check_phases(exp, need) -> None:
    recipe = exp.recipe
    need(0 < recipe.epochs < math.inf, f"recipe.epochs is {recipe.epochs}, must be above 0 and finite")
    need(0 < recipe.lr < math.inf, f"recipe.lr is {recipe.lr}, must be above 0 and finite")
    need(recipe.name is None or not exp.phases, "give phases or recipe.name, not both")
    known = {field.name for field in dataclasses.fields(exp.optimizer)} - {"name", "options"}
    for number, phase in enumerate(exp.phases):
        at = f"phases[{number}]"
        need((phase.epochs is None) != (phase.steps is None), f"{at}: give exactly one of epochs and steps")
        for name in ("epochs", "steps"):
            value = getattr(phase, name)
            need(value is None or 0 < value < math.inf, f"{at}.{name} is {value}, must be above 0 and finite")
        _check_plan(phase.plan, f"{at}.plan", need)
        need(phase.plan.quantize is None, f"{at}.plan.quantize: the run's own plan says it for all phases")
        named = _adapters(phase.plan)
        need(
            not any(named) or named == _adapters(exp.plan),
            f"{at}.plan names adapters that are not those of the run's plan, or another prompt",
        )
        unknown = sorted(set(phase.optimizer) - known)
        need(not unknown, f"{at}.optimizer: {', '.join(unknown)} cannot differ between phases, or is no field")
        given: list[str] = []
        fields = {name: value for name, value in phase.optimizer.items() if name in known}
        whole = {**dataclasses.asdict(exp.optimizer), **fields}
        optimizer = typed.build(type(exp.optimizer), whole, "", f"{at}.optimizer.", given)
        for mistake in given:
            need(False, mistake)
        if not given:
            _check_optimizer(optimizer, f"{at}.optimizer", need)


def _adapters(plan) -> tuple:
    """What a plan says of adapters."""
    return plan.adapters, plan.preset == "lora", plan.rank, plan.prompt
