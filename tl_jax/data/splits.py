# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which records train, which validate, which test.

    sets = split(source.read(data, options), data)    # {"train": ..., "validation": ..., "test": ...}

The same records, fractions and `split_seed` give the same split; no record and no group is in two of its parts; a
saved split (`keys`) comes back exactly. Knows labels, groups and keys, never the records themselves.
"""

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError, shorten
from tl_jax.data.examples import Examples

SPLITS = ("train", "validation", "test")


def split(sets: dict[str, Examples], data: Data, saved: dict[str, list[str]] | None = None) -> dict[str, Examples]:
    """The parts that are not empty, under `train`, `validation` and `test`.

    Published splits stay as they are. A set that is only `all` or only `train` is cut into three by `data.validation`
    and `data.test`; where only the validation part is missing, it is cut from train. Cuts are stratified by class: a
    class of three or more records has at least one in every part. With groups, whole groups are dealt out so that
    every part comes near its share of each class. Afterwards `data.per_class` and `data.class_counts` thin
    out train alone.

    Args:
      sets: what a source read.
      saved: `keys` of an earlier split, to be made again as it was; fractions and counts are then not used.

    Raises:
      UserError: a key or a group in two parts, a class without training records, a saved key that is gone, fewer
        groups than parts, counts by class with several labels a record.
    """
    if saved is not None:
        return _restore(sets, saved)
    rng = np.random.default_rng(data.split_seed)
    _check_apart(sets)
    parts = dict(sets)
    wanted = {}
    if set(sets) <= {"all"} or set(sets) <= {"train"}:
        parts = {"train": next(iter(sets.values()))}
        wanted = {"validation": data.validation, "test": data.test}
    elif "validation" not in sets:
        wanted = {"validation": data.validation}
    if "train" not in parts:
        raise UserError("data", f"there is no training split, only {shorten(sets)}", "name it train")
    parts |= _cut(parts["train"], {name: share for name, share in wanted.items() if share > 0}, rng)
    if data.per_class is not None or data.class_counts:
        parts["train"] = _thin(parts["train"], data, rng)
    _check_classes(parts["train"])
    return {name: parts[name] for name in SPLITS if name in parts and len(parts[name])}


def keys(sets: dict[str, Examples]) -> dict[str, list[str]]:
    """The record keys of every part, to be saved with the run."""
    return {name: list(examples.records.keys) for name, examples in sets.items()}


def _cut(examples: Examples, shares: dict[str, float], rng: np.random.Generator) -> dict[str, Examples]:
    if not shares:
        return {"train": examples}
    if examples.groups is None and not examples.multi_label:
        # Rows of numbers are of no class.
        classes = np.zeros(len(examples), np.int64) if examples.unclassed else examples.labels
        part = _stratified(classes, list(shares.values()), rng)
    else:
        groups = examples.groups or [str(i) for i in range(len(examples))]
        part = _dealt(_one_hot(examples), groups, list(shares.values()), rng)
    # Records keep their order within a part; shuffling is the batch plan's.
    return {name: examples.take(np.flatnonzero(part == i)) for i, name in enumerate(("train", *shares))}


def _stratified(labels: np.ndarray, shares: list[float], rng: np.random.Generator) -> np.ndarray:
    """int[N]: 0 for train, 1.. for each share."""
    part = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        counts = [round(len(members) * share) for share in shares]
        if len(members) > len(shares):
            counts = [max(count, 1) for count in counts]
        while sum(counts) >= len(members) and sum(counts):
            counts[int(np.argmax(counts))] -= 1
        start = 0
        for i, count in enumerate(counts, 1):
            part[members[start : start + count]] = i
            start += count
    return part


def _dealt(labels_NC: np.ndarray, groups: list[str], shares: list[float], rng: np.random.Generator) -> np.ndarray:
    """int[N]: whole groups, largest first, each to the part that it brings nearest to its share of every class."""
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) <= len(shares):
        raise UserError(
            "data.group",
            f"{len(names)} groups cannot make {len(shares) + 1} parts",
            "set data.validation or data.test to 0",
        )
    # The last column counts records, so that size matters beside the classes.
    counts_GC = np.zeros((len(names), labels_NC.shape[1] + 1))
    np.add.at(counts_GC, group_of, np.concatenate([labels_NC, np.ones((len(labels_NC), 1))], axis=1))
    totals_C = np.maximum(counts_GC.sum(0), 1)
    short_PC = np.outer([1 - sum(shares), *shares], totals_C)
    shuffled = rng.permutation(len(names))
    part_G = np.zeros(len(names), np.int64)
    for g in shuffled[np.argsort(-counts_GC[shuffled, -1], kind="stable")]:
        gain_P = (((short_PC - counts_GC[g]) ** 2 - short_PC**2) / totals_C**2).sum(1)
        part_G[g] = np.argmin(gain_P)
        short_PC[part_G[g]] -= counts_GC[g]
    for empty in set(range(len(shares) + 1)) - set(part_G):
        _fill(part_G, empty, counts_GC)
    return part_G[group_of]


def _fill(part_G: np.ndarray, empty: int, counts_GC: np.ndarray) -> None:
    """Give an empty part the smallest group that its part can spare, if possible without emptying a class there."""

    def cost(g: int) -> tuple[int, float]:
        left_C = counts_GC[(part_G == part_G[g]) & (np.arange(len(part_G)) != g)].sum(0)
        return int(((left_C == 0) & (counts_GC[g] > 0)).sum()), counts_GC[g, -1]

    spare = [g for g in range(len(part_G)) if (part_G == part_G[g]).sum() > 1]
    part_G[min(spare, key=cost)] = empty


def _one_hot(examples: Examples) -> np.ndarray:
    if examples.unclassed:
        return np.ones((len(examples), 1))
    return examples.labels if examples.multi_label else np.eye(len(examples.classes))[examples.labels]


def _thin(examples: Examples, data: Data, rng: np.random.Generator) -> Examples:
    """The same seed with smaller counts keeps a subset."""
    if examples.multi_label or examples.unclassed:
        have = "no class" if examples.unclassed else "several labels"
        raise UserError("data.per_class", f"records have {have}", "remove it")
    unknown = set(data.class_counts) - set(examples.classes)
    if unknown:
        raise UserError(
            "data.class_counts", f"names {shorten(sorted(unknown))}, the classes are {shorten(examples.classes)}"
        )
    most = [data.class_counts.get(name, data.per_class) for name in examples.classes]
    kept = [rng.permutation(np.flatnonzero(examples.labels == c))[:count] for c, count in enumerate(most)]
    return examples.take(np.sort(np.concatenate(kept)))


def _check_apart(sets: dict[str, Examples]) -> None:
    mistakes = []
    for what in ("keys", "groups"):
        owner: dict[str, str] = {}
        shared = [
            f"{item!r} ({owner[item]}, {name})"
            for name, examples in sets.items()
            for item in sorted(set(getattr(examples, what) or ()))
            if owner.setdefault(item, name) != name
        ]
        if shared:
            mistakes.append(f"{len(shared)} {what} are in more than one split: {shorten(shared)}")
    if mistakes:
        raise UserError("data", "; ".join(mistakes), "keep each in one split")


def _check_classes(train: Examples) -> None:
    if train.unclassed:
        return
    counts = train.labels.sum(0) if train.multi_label else np.bincount(train.labels, minlength=len(train.classes))
    empty = [repr(name) for name, count in zip(train.classes, counts) if count == 0]
    if empty:
        raise UserError("data", f"no training record of class {shorten(empty)}", "add some, or leave the class out")


def _restore(sets: dict[str, Examples], saved: dict[str, list[str]]) -> dict[str, Examples]:
    place = {key: (name, i) for name, examples in sets.items() for i, key in enumerate(examples.keys)}
    gone = [key for part in saved.values() for key in part if key not in place]
    if gone:
        raise UserError(
            "data",
            f"{len(gone)} records of the saved split are gone: {shorten(gone)}",
            "restore them, or start a new run",
        )
    parts = {}
    for name, part in saved.items():
        owners = {place[key][0] for key in part}
        if len(owners) != 1:
            raise UserError("data", f"the saved split {name} now lies in {shorten(sorted(owners))}", "start a new run")
        parts[name] = sets[owners.pop()].take([place[key][1] for key in part])
    return parts
