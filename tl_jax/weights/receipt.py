# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The receipt: what loading did with every tensor and every parameter. Nothing is ever silently skipped."""

import collections
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """Tensors of the file that became parameters.

    Attributes:
      tensors: names in the file, as they stand there.
      params: parameter paths.
      layout: name of the layout between them.
      dtype: of the file's tensors, in safetensors' letters (`F32`, `BF16`).
      cast: the dtype they were widened or narrowed to, or None.
    """

    tensors: tuple[str, ...]
    params: tuple[str, ...]
    layout: str
    dtype: str
    cast: str | None = None


@dataclasses.dataclass(frozen=True)
class Receipt:
    """Every tensor and every parameter accounted for.

    Attributes:
      source: the file or folder read, or "" for a network from scratch.
      digest: sha256 over the weight files' contents.
      loaded: tensors that became parameters.
      fresh: parameters initialised anew.
      dropped: tensors whose parameters were initialised anew instead.
      ignored: tensors this network has no place for, by the family's own list.
      resized: parameters that were loaded in another shape than the file's: (path, the file's, the new, how).
      teacher: sha256 of the weights of the network that teaches this one; "" without one.
    """

    source: str = ""
    digest: str = ""
    loaded: tuple[Entry, ...] = ()
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    resized: tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[str, ...]], ...] = ()
    teacher: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `receipt.json` holds it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A few lines for a person."""
        if not self.source:
            return f"nothing loaded: {len(self.fresh)} parameters start from scratch"
        layouts = collections.Counter(entry.layout for entry in self.loaded)
        casts = collections.Counter(f"{entry.dtype} to {entry.cast}" for entry in self.loaded if entry.cast)
        lines = [
            self.source + (f" (sha256 {self.digest[:12]})" if self.digest else ""),
            f"  loaded   {sum(len(entry.tensors) for entry in self.loaded)} tensors into"
            f" {sum(len(entry.params) for entry in self.loaded)} parameters"
            f" ({', '.join(f'{count} {name}' for name, count in layouts.most_common())})",
        ]
        if casts:
            lines.append("  cast     " + ", ".join(f"{count} {name}" for name, count in casts.items()))
        for path, old, new, kinds in self.resized:
            lines.append(f"  resized  {path} {list(old)} to {list(new)} ({', '.join(kinds)})")
        for word in ("fresh", "dropped", "ignored"):
            names = getattr(self, word)
            if names:
                lines.append(f"  {word:<8} {len(names)}: " + ", ".join(names[:4]) + (" …" if len(names) > 4 else ""))
        return "\n".join(lines)
