# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Phases: stretches of training, each with a plan of its own.

    written = write(exp, stages, paths, norms)            # the recipe written out, the run's own plan last
    stretches = resolve(written, exp.optimizer, steps_per_epoch, of_plan)
    stretches[1].plan.trained, stretches[1].start, stretches[1].stop

Knows plans and their order, nothing of how a run goes from one to the next.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from tl_jax import config
from tl_jax.config import Phase, Plan
from tl_jax.core.errors import UserError
from tl_jax.plan import presets
from tl_jax.plan.resolve import Resolved


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A phase in full.

    Attributes:
      plan: what happens to every parameter.
      optimizer: the run's, with what differs in this phase.
      start, stop: its updates are [start, stop) of the run's.
      since: the phase in which each trained path began to train and has trained since.
    """

    plan: Resolved
    optimizer: config.Optimizer
    start: int
    stop: int
    since: Mapping[str, int]


def write(
    exp: config.Experiment, stages: Sequence[str], paths: Sequence[str], norms: Collection[str]
) -> tuple[Phase, ...]:
    """All phases of a run as a user would have written them, the last with the run's own plan.

    `lp_ft` (Kumar et al. 2022): the head with its own schedule, then the plan with its own, so that the features are
    not bent towards a head that knows nothing yet.

    `fine_tune` is `Learner.fine_tune` of fastai, whose `base_lr` is `optimizer.learning_rate`: the head and, where
    there is one, BatchNorm at a tenth of the rate, in one cycle that rises for 0.99 of the phase; then the plan at half
    the rate, a hundredth of that in the first stage, in one cycle that rises from 1/5 for 0.3 of the phase. Rates
    differ from stage to stage here, between a few groups of layers there.

    `ulmfit` (Howard and Ruder 2018): the head, then one block more in every phase, from the last, then the plan; each
    stage at 1/2.6 of the rate of the one after it; every phase rises from 1/32 for a tenth of it and falls to 1/32.

    `frozen_start` (Baevski et al. 2020): the head, then the plan, one schedule over both.

    Args:
      stages: all stage names in order.
      paths: paths of all leaves that can train.
      norms: paths of the norms that have running statistics.
    """
    recipe, optimizer = exp.recipe, exp.optimizer
    last = Phase(exp.plan, exp.train.epochs, exp.train.steps)
    if recipe.name is None:
        return (*exp.phases, last)
    rate = optimizer.learning_rate
    head = Phase(Plan(preset="linear_probe"), recipe.epochs, optimizer={"learning_rate": rate * recipe.lr})
    if recipe.name == "lp_ft":
        return head, last
    if recipe.name == "frozen_start":
        return _over(head, span="run"), _over(last, span="run")
    if recipe.name == "fine_tune":
        slow = tuple((f"{re.escape(norm)}/.*", 0.1) for norm in norms)
        probe = Plan(preset="linear_probe", lr=slow, batchnorm=((".*", "train"),) if norms else ())
        first = _over(dataclasses.replace(head, plan=probe), schedule="one_cycle", warmup=0.99)
        rates = {} if _has_rates(exp.plan) else {"lowest_lr": 0.01}
        last = dataclasses.replace(last, plan=dataclasses.replace(exp.plan, **rates))
        return first, _over(last, schedule="one_cycle", warmup=0.3, initial=0.2, learning_rate=rate / 2)
    rates = {} if _has_rates(exp.plan) else {"layer_decay": 1 / 2.6}
    plans = [Plan(preset="linear_probe")]
    plans += [Plan(preset="last_n", n=n, **rates) for n in range(1, len(presets.blocks(stages)))]
    phases = [dataclasses.replace(head, plan=plan) for plan in plans]
    phases.append(dataclasses.replace(last, plan=dataclasses.replace(exp.plan, **rates)))
    return tuple(_over(phase, schedule="linear", warmup=0.1, initial=1 / 32, final=1 / 32) for phase in phases)


def resolve(
    written: Sequence[Phase],
    optimizer: config.Optimizer,
    steps_per_epoch: int | None,
    of_plan: Callable[[Plan, float], Resolved],
) -> tuple[Stretch, ...]:
    """Every phase in full.

    Args:
      steps_per_epoch: None where nothing will train; every phase is then empty.
      of_plan: (plan, weight decay) -> what happens to every parameter.

    Raises:
      UserError: as `of_plan`, with the phase's number.
    """
    stretches, stop = [], 0
    since: dict[str, int] = {}
    for number, phase in enumerate(written):
        opt = dataclasses.replace(optimizer, **phase.optimizer)
        try:
            plan, start = of_plan(phase.plan, opt.weight_decay), stop
        except UserError as error:
            if len(written) == 1:
                raise
            raise UserError(f"phase {number + 1} of {len(written)}, {error.where}", error.what, error.do) from error
        since = {path: since.get(path, number) for path in plan.trained}
        if steps_per_epoch is not None:
            stop += phase.steps or max(1, round(phase.epochs * steps_per_epoch))
        stretches.append(Stretch(plan, opt, start, stop, since))
    return tuple(stretches)


def _over(phase: Phase, **fields) -> Phase:
    return dataclasses.replace(phase, optimizer={**phase.optimizer, **fields})


def _has_rates(plan: Plan) -> bool:
    return plan.layer_decay is not None or plan.lowest_lr is not None
