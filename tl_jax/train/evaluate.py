# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Outputs of a whole split on the host, each example exactly once."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np


def collect(eval_step: Callable, state, batches: Iterable[Mapping[str, jax.Array]]) -> dict[str, np.ndarray]:
    """Concatenated outputs in the order of the split, without the examples that only fill up the last batch; what is
    shorter than in other batches is filled up with zeros.

    Args:
      eval_step: (state, batch) -> dict of arrays whose first dimension is the example, among them `weight` and `id`,
        the example's position in the split.
    """
    # All steps are dispatched before the first result is waited for.
    parts = [eval_step(state, batch) for batch in batches]
    kept = []
    for part in jax.device_get(parts):
        real = part.pop("weight") > 0
        kept.append({name: value[real] for name, value in part.items()})
    joined = {name: _joined([part[name] for part in kept]) for name in kept[0]}
    order = np.argsort(joined.pop("id"))
    return {name: value[order] for name, value in joined.items()}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    shape = np.max([part.shape[1:] for part in parts], axis=0)
    if all(part.shape[1:] == tuple(shape) for part in parts):
        return np.concatenate(parts)
    return np.concatenate(
        [np.pad(part, [(0, 0), *((0, want - have) for want, have in zip(shape, part.shape[1:]))]) for part in parts]
    )
