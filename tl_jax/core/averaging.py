# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One network from several of one form: on the way from one to another (WiSE-FT), and the mean of many (soups).

    network = between(pretrained, tuned, 0.5)                     # {path: array}, all of them
    soup = mean([first, second, third])
    soup, chosen = greedy_soup(best_first, evaluate)

It costs nothing at prediction, where an ensemble runs every network. Running statistics are leaves like all others, as
in the code of both papers; their mean is not what the averaged network would gather from data. Knows paths, not models.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.core.chain import Params
from tl_jax.core.errors import UserError, shorten


def between(pretrained: Params, tuned: Params, alpha: float) -> Params:
    """(1 - alpha) pretrained + alpha tuned (WiSE-FT, Wortsman et al. 2022a), each leaf in its own dtype.

    Computed in float32; bit-equal to the ends at 0 and 1, and wherever both ends are equal.

    Args:
      pretrained: leaves by path; those that it lacks, such as a new head, stay the tuned ones.
      tuned: all leaves by path.
      alpha: in [0, 1].

    Raises:
      UserError: alpha out of range, leaves that `tuned` lacks, other shapes or dtypes.
    """
    if not 0 <= alpha <= 1:
        raise UserError("alpha", f"is {alpha}, must be in [0, 1]")
    shared = {path: tuned[path] for path in pretrained if path in tuned}
    _check_alike([shared, pretrained], ["the tuned network", "the pretrained one"])
    if alpha in (0, 1):
        return {**tuned, **(shared if alpha else pretrained)}
    return {**tuned, **{path: _towards(leaf, tuned[path], alpha) for path, leaf in pretrained.items()}}


def mean(trees: Sequence[Params]) -> Params:
    """The uniform soup (Wortsman et al. 2022b): each leaf's mean in float32, its dtype kept; trees that are equal give
    themselves, bit by bit.

    Raises:
      UserError: no tree, other paths, shapes or dtypes, integers that differ.
    """
    if not trees:
        raise UserError("mean", "there is nothing to average")
    _check_alike(trees, [f"tree {i}" for i in range(len(trees))])
    return {path: _mean([tree[path] for tree in trees]) for path in trees[0]}


def greedy_soup(best_first: Sequence[Params], evaluate: Callable[[Params], float]) -> tuple[Params, list[int]]:
    """The soup into which a tree goes if the soup is no worse with it (Wortsman et al. 2022b), and which went in.

    It starts from the first tree, so it never scores below it.

    Args:
      best_first: trees by falling score on validation data.
      evaluate: a tree's score on the same data; larger is better.

    Raises:
      UserError: as `mean`.
    """
    soup, chosen = mean(best_first[:1]), [0]
    score = evaluate(soup)
    for i in range(1, len(best_first)):
        larger = mean([best_first[j] for j in (*chosen, i)])
        found = evaluate(larger)
        if found >= score:
            soup, score, chosen = larger, found, [*chosen, i]
    return soup, chosen


def _check_alike(trees: Sequence[Params], names: Sequence[str]) -> None:
    """Raise one UserError for all leaves that cannot be averaged with those of the first tree."""
    first, wrong = trees[0], []
    for tree, name in zip(trees[1:], names[1:]):
        wrong += [f"{path} is missing in {name}" for path in first if path not in tree]
        wrong += [f"{path} is missing in {names[0]}" for path in tree if path not in first]
        for path in (path for path in first if path in tree):
            a, b = first[path], tree[path]
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                kinds = f"{a.dtype}{list(a.shape)} in {names[0]}, {b.dtype}{list(b.shape)} in {name}"
                wrong.append(f"{path} is {kinds}")
            elif not jnp.issubdtype(a.dtype, jnp.floating) and not np.array_equal(a, b):
                wrong.append(f"{path} {a.dtype} differs in {name} and has no mean")
    wrong += [f"{path} is float64, float32 cannot average it" for path, x in first.items() if x.dtype == np.float64]
    if wrong:
        raise UserError("average", f"networks that do not fit each other: {shorten(wrong)}")


def _mean(leaves: Sequence[jax.Array]) -> jax.Array:
    # A running mean rather than a sum and a quotient: of equal leaves it is exact for any number of them.
    total, dtype = leaves[0], leaves[0].dtype
    if jnp.issubdtype(dtype, jnp.floating):
        total = jnp.asarray(total, jnp.float32)
    for count, leaf in enumerate(leaves[1:], 2):
        total = _towards(total, jnp.asarray(leaf, total.dtype), 1 / count)
    return total.astype(dtype)


def _towards(start: jax.Array, end: jax.Array, share: float) -> jax.Array:
    """`share` of the way, in the dtype of `start`; where both ends are equal their very bits, a negative zero's too."""
    if not jnp.issubdtype(start.dtype, jnp.floating):
        return start
    wide, to = jnp.asarray(start, jnp.float32), jnp.asarray(end, jnp.float32)
    return jnp.where(wide == to, wide, wide + share * (to - wide)).astype(start.dtype)
