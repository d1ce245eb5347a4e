# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Presets: pattern lists written for the user, nothing more.

train_patterns("last_n", stage_names, paths, n=2)    # ('blocks/10/.*', 'blocks/11/.*', 'norm/.*', 'head/.*')
"""

import re
from collections.abc import Sequence

from tl_jax.core.errors import UserError
from tl_jax.core.task import AIDS, HEADS

_BLOCK = re.compile(r"(.*/)?blocks/\d+")
# Stages of a network's end that count as its head; a `pool` with layers of its own is the end of the last block.
_ENDS = (*HEADS, *AIDS, "feature", "pooler", "similarity", "detector")


def train_patterns(preset: str, stages: Sequence[str], paths: Sequence[str], n: int | None = None) -> tuple[str, ...]:
    """The preset's list of what trains.

    Args:
      stages: all stage names in order.
      paths: paths of all leaves that can train.
      n: for `last_n`.

    Raises:
      UserError: the network has not what the preset speaks of.
    """
    head = head_patterns(paths)
    if preset == "lora":
        return ()
    if preset == "full":
        return (".*",)
    if preset == "linear_probe":
        if not head:
            raise UserError("plan.preset", "linear_probe trains the head, and this network has none")
        return head
    if preset == "last_n":
        numbers = blocks(stages)
        if n > len(numbers):
            raise UserError(
                "plan.n", f"is {n}, the network has {len(numbers)} blocks", "use preset=full for all of them"
            )
        after = [stage for stage in stages[numbers[-n] :] if any(path.startswith(f"{stage}/") for path in paths)]
        return tuple(f"{re.escape(stage)}/.*" for stage in after)
    if preset == "norm_only":
        # Only norms have a `scale`; their biases are the biases beside one.
        norms = {path.rpartition("/")[0] for path in paths if path.endswith("/scale")}
        wanted = [path for path in paths if path.rpartition("/")[0] in norms]
    else:
        wanted = [path for path in paths if path.endswith("/bias")]
    if not wanted:
        raise UserError("plan.preset", f"{preset} finds nothing to train in this network")
    return (*map(re.escape, wanted), *head)


def blocks(stages: Sequence[str]) -> list[int]:
    """Which of the stages are blocks."""
    return [number for number, stage in enumerate(stages) if _BLOCK.fullmatch(stage)]


def head_patterns(paths: Sequence[str]) -> tuple[str, ...]:
    """Patterns of the head that the network has, if any."""
    return tuple(f"{name}/.*" for name in HEADS if any(path.startswith(f"{name}/") for path in paths))


def depths(stages: Sequence[str]) -> dict[str, int]:
    """How far each stage is from the end, as `timm` counts it for layer-wise decay (after Bao et al. 2021, BEiT, where
    the final norm is 0): 0 for a pooling layer and heads, 1 for the last block and for a norm behind it, and one more
    than the first block for everything before that. A stage between blocks belongs to the next one."""
    found, steps = blocks(stages), {}
    for number, stage in enumerate(stages):
        steps[stage] = sum(block >= number for block in found)
        if found and number < found[0]:
            steps[stage] += 1
        elif found and number > found[-1] and stage not in _ENDS:
            steps[stage] = 1
    return steps
