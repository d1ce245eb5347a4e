# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a training loop tells the world; the loop itself prints and writes nothing."""

from collections.abc import Mapping


class Callback:
    """Override what you want to hear of."""

    def on_start(self, step: int, total: int) -> None:
        """The loop begins at `step` of `total`; above 0 it goes on from a checkpoint."""

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Means over the steps since the last line."""

    def on_eval(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """A whole split was evaluated after `step` updates."""

    def on_save(self, step: int) -> None:
        """A checkpoint of `step` was handed to the writer."""

    def say(self, text: str) -> None:
        """Something long begins: loading, compiling, saving."""

    def on_end(self) -> None:
        """The loop is over, also by an exception."""
