# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Stopping on request: the first signal finishes the step and saves, a second ends at once."""

import os
import signal
import threading

import jax


class Stopped(Exception):
    """The run stopped on request, after saving.

    Attributes:
      step: of the checkpoint it left.
      exit_code: 130 after Ctrl-C, 75 after SIGTERM.
    """

    def __init__(self, step: int, exit_code: int):
        super().__init__(f"stopped after step {step}")
        self.step, self.exit_code = step, exit_code


class StopRequest:
    """Within this context SIGINT and SIGTERM set `exit_code`; outside of the main thread it does nothing.

    With several processes SIGTERM stays with JAX, which tells all of them (`processes.preempted`).
    """

    def __init__(self):
        self.exit_code: int | None = None
        self._several = jax.process_count() > 1
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number, frame):
        code = 130 if number == signal.SIGINT else 75
        if self.exit_code is not None:
            # Whatever is being written stays without a manifest, so the previous checkpoint counts.
            os._exit(code)
        self.exit_code = code
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
