# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes as one run: starting together, stopping together, dying together.

    start("10.0.0.1:1234", num_processes=8, process_id=3)      # before any device is used
    with leave_on_error():
        while step < steps and not preempted(step):
            ...

All of it is `jax.distributed`, save one thing: an exception in one process leaves the others waiting for it until
the shutdown barrier gives up, five minutes later. `leave_on_error` ends such a process at once instead.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from tl_jax.core.errors import UserError

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    auto: bool = False,
    *,
    heartbeat_seconds: int = 20,
    patience_seconds: int = 300,
) -> None:
    """Join the other processes of this run; without arguments this process runs alone and nothing is done.

    Call it before the first use of a device, with the same coordinator and count in every process.

    Args:
      coordinator: `host:port` of process 0, reachable from all; a loopback address is served on loopback only.
      num_processes: how many there are.
      process_id: which one this is, in [0, num_processes).
      auto: let JAX find what is not given here from the cluster (Cloud TPU, Kubernetes, SLURM, Open MPI).
      heartbeat_seconds: silence after which a process counts as dead and JAX aborts the others (SIGABRT).
      patience_seconds: how long to wait for the others to start; then JAX aborts.

    Raises:
      UserError: arguments that cannot work, before any waiting, or `auto` where no cluster is found.
    """
    if coordinator is None and num_processes is None and process_id is None and not auto:
        return
    _check(coordinator, num_processes, process_id, auto)
    loopback = coordinator is not None and coordinator.rpartition(":")[0] in _LOOPBACK
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_seconds,
            initialization_timeout=patience_seconds,
            # JAX's default serves every network interface.
            coordinator_bind_address=coordinator if loopback else None,
        )
    except ValueError as error:
        # What JAX says when it needs an argument that no cluster tells it.
        raise UserError(
            "processes", f"no cluster was found ({error})", "give coordinator, num_processes and process_id"
        ) from error


@contextlib.contextmanager
def leave_on_error(passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Where several processes run, an exception inside prints its traceback and ends this one at once, with status 1.

    No cleanup runs and nothing is waited for: the others are aborted within the heartbeat, and all are started again
    from the last checkpoint. `SystemExit` passes, as does what is `passing`. In a single process every exception does.
    """
    # Asked on the way in: afterwards, a first use of the devices could itself wait for the others.
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not several or isinstance(error, passing):
            raise
        lines = traceback.format_exc().splitlines()
        name = f"[process {jax.process_index()} of {jax.process_count()}]"
        print("\n".join(f"{name} {line}" for line in lines), file=sys.stderr)
        leave(1)


def leave(code: int) -> NoReturn:
    """End this process with a status: at once where it is one of several, without the barrier on the way out."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        os._exit(code)
    sys.exit(code)


def preempted(step: int) -> bool:
    """Whether to save and stop after `step`, because some process got a SIGTERM: the same answer in every process.

    To be called once a step by all. Always False where `start` had nothing to do: catching signals is the caller's
    own affair there.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None, auto: bool) -> None:
    wrong = []
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and not auto:
        wrong.append(f"{', '.join(missing)} must be given too, or auto")
    if coordinator is not None:
        match = _ADDRESS.fullmatch(coordinator)
        if not match or not 1 <= int(match["port"]) <= 65535:
            wrong.append(f"coordinator is {coordinator!r}, must be host:port, as 10.0.0.1:1234")
    if num_processes is not None and num_processes < 1:
        wrong.append(f"num_processes is {num_processes}, must be at least 1")
    elif process_id is not None and (process_id < 0 or (num_processes is not None and process_id >= num_processes)):
        wrong.append(f"process_id is {process_id}, must be in [0, {num_processes or 'num_processes'})")
    if wrong:
        raise UserError("processes", "; ".join(wrong))
