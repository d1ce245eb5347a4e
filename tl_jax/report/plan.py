# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The plan as a person reads it: one line a stage, and as `plan.json` holds it."""

from collections.abc import Mapping, Sequence
from typing import Any

from tl_jax.core.chain import Chains
from tl_jax.plan.phases import Stretch
from tl_jax.plan.resolve import Resolved, count
from tl_jax.report.table import markdown

_COLUMNS = ("stage", "parameters", "trained", "rate", "decay", "batchnorm", "dropout", "cut")


def by_stage(plan: Resolved, chains: Chains, params: Mapping[str, Any]) -> str:
    """A Markdown table: what trains, how fast, and what lies below the cut."""
    rows = []
    for chain, stages in chains.items():
        for number, stage in enumerate(stages):
            paths = stage.paths()
            trained = [path for path in paths if path in plan.lr]
            rows.append(
                {
                    "stage": stage.name,
                    "parameters": count(params, paths),
                    "trained": count(params, trained),
                    "rate": _span([plan.lr[path] for path in trained]),
                    "decay": _span([plan.decay[path] for path in trained]),
                    "batchnorm": plan.batchnorm.get(stage.name, ""),
                    "dropout": "yes" if plan.modes[stage.name].dropout else "",
                    "cut": "below" if number < plan.cut[chain] else "",
                }
            )
    return markdown(rows, _COLUMNS)


def to_dict(stretches: Sequence[Stretch]) -> dict[str, Any]:
    """Plain data: the steps of the run's last phase, every trained path with its rate and decay, and the cut; and the
    same of the phases before it."""
    *earlier, last = [{"start": each.start, "stop": each.stop, **_plan(each.plan)} for each in stretches]
    return {**last, "earlier_phases": earlier}


def _plan(plan: Resolved) -> dict[str, Any]:
    return {
        "trained": {path: {"rate": plan.lr[path], "decay": plan.decay[path]} for path in plan.trained},
        "moving": list(plan.moving),
        "batchnorm": dict(plan.batchnorm),
        "cut": dict(plan.cut),
    }


def _span(values: list[float]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
