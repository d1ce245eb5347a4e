# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which parameters train, and how fast: a plan's patterns made into one value per path.

    resolved = resolve(Plan(preset="last_n", n=2, lr=(("head/.*", 10.0),)), chains, params, weight_decay=0.05)
    resolved.trained      # ('blocks/10/attn/query/kernel', ...)

Patterns are read in order and the first match wins; one that matches nothing is an error. Knows paths and stages, not
families or tasks.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from tl_jax import config
from tl_jax.core import paths
from tl_jax.core.chain import Chains, Mode, Remat
from tl_jax.core.errors import UserError
from tl_jax.core.task import AIDS
from tl_jax.plan import adapters, cut, presets


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A plan in full.

    Attributes:
      trained: paths that train, in the model's order; all others are frozen.
      moving: running statistics that follow the batches.
      lr: multiple of the learning rate of every trained path.
      decay: weight decay of every trained path.
      modes: how each stage runs in training, by stage name.
      batchnorm: `eval`, `stats` or `train` by name, for the stages that have running statistics.
      cut: per chain, the number of stages below the cut.
    """

    trained: tuple[str, ...]
    moving: tuple[str, ...]
    lr: Mapping[str, float]
    decay: Mapping[str, float]
    modes: Mapping[str, Mode]
    batchnorm: Mapping[str, str]
    cut: Mapping[str, int]


def resolve(
    plan: config.Plan,
    chains: Chains,
    params: Mapping[str, object],
    weight_decay: float,
    reads: Mapping[str, tuple[str, ...]] | None = None,
    no_decay: Sequence[str] = (),
    remat: Remat = "none",
) -> Resolved:
    """One value per path.

    Args:
      params: every leaf with its shape; abstract will do.
      weight_decay: where no rule of the plan says otherwise; leaves of at most one dimension get 0.
      reads: per chain, the earlier chains whose outputs it reads.
      no_decay: patterns of further leaves that get 0, such as tables of positions.
      remat: of the blocks above the cut.

    Raises:
      UserError: a pattern that matches nothing, a plan that trains nothing.
    """
    stages = {stage.name: stage for chain in chains.values() for stage in chain}
    stats = {path for stage in stages.values() for path in stage.stats()}
    trainable = [path for path in params if path not in stats]
    network = [path for path in trainable if not adapters.is_adapter(path)]
    # In a phase whose plan names none, the adapters that another phase trains are frozen.
    named = adapters.asked(plan)
    ours = set(trainable) - set(network) if named else set()
    assert ours or not named, "the plan's adapters are not installed"
    patterns = plan.train
    if plan.preset is not None:
        patterns = (*patterns, *presets.train_patterns(plan.preset, list(stages), network, plan.n))
    if ours:
        # A layer that predicts words is as published, a head of another kind most often new.
        patterns = (*patterns, *(p for p in presets.head_patterns(network) if p != "lm_head/.*"))
    if not patterns and not ours:
        raise UserError("plan", "trains nothing", "give plan.preset (such as linear_probe) or plan.train")
    trained = paths.matches(patterns, network, "plan.train")
    trained.update(path for path in network if path.startswith(tuple(f"{name}/" for name in AIDS)))

    with_stats = [name for name, stage in stages.items() if stage.stats()]
    batchnorm = {name: "train" if trained.intersection(stages[name].paths()) else "eval" for name in with_stats}
    asked = paths.first_match(plan.batchnorm, with_stats, "plan.batchnorm")
    batchnorm.update(asked)
    for name in (name for name, mode in asked.items() if mode == "train"):
        norms = {path.rpartition("/")[0] for path in stages[name].stats()}
        trained.update(p for p in stages[name].paths() if p not in stats and p.rpartition("/")[0] in norms)

    # Only now: an adapter is no reason for the norms around it to follow the batch.
    ordered = tuple(path for path in trainable if path in trained or path in ours)
    follows = {name for name, mode in batchnorm.items() if mode != "eval"}
    below = cut.find(chains, ordered, follows, plan.dropout == "all", reads or {})
    suffix = {stage.name for chain, members in chains.items() for stage in members[below[chain] :]}
    draws = {"suffix": suffix, "all": set(stages), "none": set()}[plan.dropout]
    resolved = Resolved(
        trained=ordered,
        moving=tuple(path for name in stages if name in follows for path in stages[name].stats()),
        lr=_rates(plan, stages, ordered),
        decay=_decays(plan, params, ordered, weight_decay, no_decay),
        modes={name: Mode(name in draws, name in follows) for name in stages},
        batchnorm=batchnorm,
        cut=below,
    )
    return with_remat(resolved, chains, remat)


def with_remat(plan: Resolved, chains: Chains, remat: Remat) -> Resolved:
    """The same plan, whose blocks above the cut compute again what `remat` says."""
    names = [stage.name for members in chains.values() for stage in members]
    suffix = {stage.name for chain, members in chains.items() for stage in members[plan.cut[chain] :]}
    again = {names[number] for number in presets.blocks(names) if names[number] in suffix}
    modes = {
        name: dataclasses.replace(mode, remat=remat) if name in again else mode for name, mode in plan.modes.items()
    }
    return dataclasses.replace(plan, modes=modes)


def _rates(plan: config.Plan, stages, trained) -> dict[str, float]:
    rates = {path: 1.0 for path in trained}
    depths = presets.depths(list(stages))
    step = plan.layer_decay
    if plan.lowest_lr is not None:
        step = plan.lowest_lr ** (1 / max(1, *depths.values()))
    if step is not None:
        for name, depth in depths.items():
            rates.update({path: step**depth for path in stages[name].paths() if path in rates})
    for path, multiple in _first_match(plan.lr, trained, "plan.lr").items():
        rates[path] *= multiple
    return rates


def _decays(plan: config.Plan, params, trained, weight_decay: float, no_decay) -> dict[str, float]:
    def spared(path: str) -> bool:
        return len(params[path].shape) <= 1 or any(re.fullmatch(pattern, path) for pattern in no_decay)

    usual = {path: 0.0 if spared(path) else weight_decay for path in trained}
    return {**usual, **_first_match(plan.decay, trained, "plan.decay")}


def _first_match(rules: config.Rules, trained, where: str) -> dict[str, object]:
    """As `paths.first_match`, where a rule reaches the parameters of adapters only if it names them."""
    named = adapters.names_adapters
    found = {}
    for wanted in (False, True):
        those = [rule for rule in rules if named(rule[0]) == wanted]
        found |= paths.first_match(those, [path for path in trained if adapters.is_adapter(path) == wanted], where)
    return found


def count(params: Mapping[str, object], names) -> int:
    """Numbers in the leaves at these paths."""
    return sum(math.prod(params[path].shape) for path in names)
