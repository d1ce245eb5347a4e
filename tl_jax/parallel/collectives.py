# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a compiled program sends between devices: how often, and how much.

    counted(step.core.lower(*arguments).compile().as_text())       # {"all-reduce": Traffic(count=2, nbytes=9216)}

Read from XLA's text, which names a collective where it is done and, of a loop that it knows the length of, how often
that is.
"""

import collections
import dataclasses
import math
import re

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(
    r" = (?P<results>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|"
    r"collective-permute|collective-broadcast)(?P<start>-start)?\("
)
_CALLS = re.compile(
    r"(?P<how>body|condition|calls|to_apply|true_computation|false_computation|branch_computations)="
    r"(\{(?P<several>[^}]*)\}|%?(?P<one>[\w.\-]+))"
)
_TIMES = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in a run of the program.

    Attributes:
      count: how many; one that moves several arrays at once counts once.
      nbytes: of what they leave on one device, in all.
    """

    count: int
    nbytes: int


def counted(text: str) -> dict[str, Traffic]:
    """Collectives by kind, from the text of a compiled program. What is in a loop counts as often as it is run, once
    where XLA does not know how often."""
    bodies = _computations(text)
    times = _times(bodies)
    counts, sizes, seen = collections.Counter(), collections.Counter(), set()
    for name, lines in bodies.items():
        for line in lines:
            found = _COLLECTIVE.search(line)
            if found is None:
                continue
            # A TPU's program may do a collective in pieces beside other work: one channel, several instructions.
            channel = _CHANNEL.search(line)
            if channel is not None and channel[1] in seen:
                continue
            seen.add(channel and channel[1])
            counts[found["kind"]] += times[name]
            sizes[found["kind"]] += times[name] * _size(found)
    return {kind: Traffic(counts[kind], sizes[kind]) for kind in sorted(counts) if counts[kind]}


def _computations(text: str) -> dict[str, list[str]]:
    """The instructions of every computation by its name; that of the entry is ""."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = None if line[:1].isspace() or line.startswith("HloModule") else _COMPUTATION.match(line)
        if head is not None:
            lines = bodies.setdefault("" if head["entry"] else head["name"], [])
        else:
            lines.append(line)
    return bodies


def _times(bodies: dict[str, list[str]]) -> collections.Counter:
    """How often a run of the program runs each computation."""
    callers = collections.defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            trips = _TIMES.search(line)
            for call in _CALLS.finditer(line):
                often = int(trips[1]) if trips and call["how"] in ("body", "condition") else 1
                for callee in re.findall(r"[\w.\-]+", call["several"] or call["one"]):
                    callers[callee].append((name, often))
    found = collections.Counter({"": 1})

    def times(name: str) -> int:
        if name not in found:
            found[name] = sum(often * times(caller) for caller, often in callers[name])
        return found[name]

    for name in bodies:
        times(name)
    return found


def _size(found: re.Match) -> int:
    """Bytes of the results of an instruction."""
    arrays = _ARRAY.findall(found["results"])
    # The asynchronous forms of these two name what goes in before what comes out.
    if found["start"] and found["kind"] == "all-gather":
        arrays = arrays[len(arrays) // 2 :]
    if found["start"] and found["kind"] == "collective-permute":
        arrays = arrays[1:2]
    return sum(
        math.ceil(math.prod(int(size) for size in dims.split(",") if size) * _bits(kind) / 8) for kind, dims in arrays
    )


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
