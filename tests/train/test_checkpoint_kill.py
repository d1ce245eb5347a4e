# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A process killed while it saves leaves a checkpoint that is whole; two processes share one checkpoint."""

import random
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from tl_jax.train.checkpoint import Checkpoints

_ENDLESS = textwrap.dedent("""
    import itertools, sys
    import jax.numpy as jnp
    from tl_jax.train.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1])
    first = (checkpoints.latest() or 0) + 1
    for step in itertools.count(first):
        checkpoints.save(step, {"w": jnp.full((1 << 18,), step, jnp.float32)}, {"at": step})
        if step == first + 1:
            print("ready", flush=True)
""")

_SHARED = textwrap.dedent("""
    import sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    folder, port, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from tl_jax.train import manifest
    from tl_jax.train.checkpoint import Checkpoints
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    def array(step):
        return jax.make_array_from_callback((8,), sharding, lambda i: np.arange(8, dtype=np.float32)[i] + step)
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": array(step)}, {"at": step})
    checkpoints.wait()
    if rank == 0:
        (checkpoints.folder / "3" / "_CHECKPOINT_METADATA").unlink()
    assert checkpoints.latest() == 2, checkpoints.steps()
    wanted = {"w": jax.ShapeDtypeStruct((8,), np.float32, sharding=sharding)}
    tree, progress = checkpoints.restore(2, wanted)
    assert progress == {"at": 2}
    for shard in tree["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(8)[shard.index] + 2)
    if rank == 0:
        manifest.write = lambda *_: 1 / 0
    checkpoints.save(4, {"w": array(4)}, {})
    try:
        checkpoints.wait()
    except (ZeroDivisionError, RuntimeError) as error:
        print("failed", type(error).__name__)
    assert checkpoints.latest() == 2
    checkpoints.close()
""")


def test_sigkill_in_mid_save_leaves_the_last_checkpoint_whole(tmp_path):
    """Three kills at random moments of endless saving: each time the latest step reads back as it was written."""
    for seed in range(3):
        command = [sys.executable, "-c", _ENDLESS, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(random.Random(seed).uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        with Checkpoints(tmp_path) as checkpoints:
            step = checkpoints.latest()
            shape = jax.ShapeDtypeStruct((1 << 18,), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[0]))
            tree, progress = checkpoints.restore(step, {"w": shape})
        assert progress == {"at": step}
        np.testing.assert_array_equal(tree["w"], np.full(1 << 18, step, np.float32))


def test_two_processes_agree(tmp_path):
    """Both find the same latest step, restore it, and both learn of a failure on process 0."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    commands = [[sys.executable, "-c", _SHARED, str(tmp_path), port, str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out.splitlines()[-1] for out, _ in outputs] == ["failed ZeroDivisionError", "failed RuntimeError"]
