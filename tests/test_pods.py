# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The launch files of `pods/`, run here with stand-ins for the commands of a cluster."""

import os
import pathlib
import random
import re
import shlex
import signal
import stat
import subprocess
import sys

import makers
import pytest
import yaml

_PODS = makers.ROOT / "pods"
_SLURM = {"CONFIG": "configs/text.py", "WORKDIR": "/shared/runs/text"}
_GKE = {**_SLURM, "NAME": "pets", "IMAGE": "example.org/tl_jax:1", "CLAIM": "shared", "TOPOLOGY": "4x4", "HOSTS": "4"}
_GKE["ACCELERATOR"] = "tpu-v5-lite-podslice"
_TPU = {
    **_SLURM,
    "NAME": "pets",
    "PROJECT": "p",
    "ZONE": "z",
    "ACCELERATOR": "v5litepod-16",
    "RUNTIME": "r",
    "WAIT": "0",
}
_VALUES = {"slurm.sh": {**_SLURM, "CODE": "."}, "gke.sh": _GKE, "cloud_tpu.sh": _TPU}

# Two tasks on this machine, as `srun` starts them on two nodes; ends with the worse status.
_SRUN = """
echo "srun $*" >> "$LOG"
shift
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost "$@" & echo $! >> "$LOG.pids"
  pids+=" $!"
done
trap '' TERM
for pid in $pids; do wait $pid; s=$?; [ $s -gt ${worst:-0} ] && worst=$s; done
exit ${worst:-0}
"""
_SCANCEL = 'echo "scancel $*" >> "$LOG"; kill -TERM $(cat "$LOG.pids")'
_LOGGED = 'echo "${0##*/} $*" >> "$LOG"'

# In place of the real one: what JAX makes of the environment, then an end.
_LAUNCH = """
import os, sys
from tl_jax.parallel import processes
processes.start(auto="--distributed" in sys.argv)
import jax
devices = os.environ["JAX_LOCAL_DEVICE_IDS"]
print(f"process {jax.process_index()} of {jax.process_count()} with devices {devices}", flush=True)
jax.distributed.shutdown()
sys.exit(75)
"""
_WAITING = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
os.write(1, b"up\\n")  # In one piece: print() writes word and line end one by one where PYTHONUNBUFFERED is set.
time.sleep(60)
"""


def stand_ins(folder: pathlib.Path, **scripts: str) -> dict[str, str]:
    """The environment in which these commands are found before all others; what they are asked is in `LOG`."""
    for name, text in scripts.items():
        file = folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**makers.environment(), "PATH": path, "LOG": str(folder / "log"), "PYTHON": sys.executable}


def cluster(folder: pathlib.Path, launch: str) -> dict[str, str]:
    """A SLURM job on two nodes of four GPUs, whose launch.py is this."""
    (folder / "launch.py").write_text(launch)
    env = stand_ins(folder, srun=_SRUN, scancel=_SCANCEL, scontrol=_LOGGED)
    # JAX makes its port of the job's number.
    return {
        **env,
        **_SLURM,
        "CODE": str(folder),
        "SLURM_JOB_ID": str(random.randrange(4096)),
        "SLURM_GPUS_ON_NODE": "4",
    }


def bash(name: str, *words: str, env, cwd=makers.ROOT) -> subprocess.CompletedProcess:
    """One of the files, run to its end."""
    command = ["bash", str(_PODS / name), *words]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", _VALUES)
def test_every_value_must_be_filled_in(tmp_path, name):
    """One line that names the first empty one, exit 2, and no command of a cluster is called."""
    assert {path.name for path in _PODS.glob("*.sh")} == set(_VALUES)
    env = stand_ins(tmp_path, srun=_LOGGED, gcloud=_LOGGED)
    for empty in _VALUES[name]:
        if empty in ("WAIT", "CODE"):
            continue
        done = bash(name, env={**env, **_VALUES[name], empty: ""})
        assert done.returncode == 2 and f"error: {empty} is empty" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "log").exists() and not bash("gke.sh", env={**env, **_GKE, "NAME": ""}).stdout


def test_slurm_starts_a_process_a_node_and_requeues_what_saved(tmp_path):
    """JAX finds both processes by SLURM's environment, each with all GPUs of its node; 75 puts the job back."""
    env = cluster(tmp_path, _LAUNCH)
    done = bash("slurm.sh", "--config.train.steps=5", env=env)
    assert done.returncode == 75, done.stderr
    for i in range(2):
        assert f"process {i} of 2 with devices 0,1,2,3" in done.stdout, done.stdout + done.stderr
    srun, requeue = (tmp_path / "log").read_text().splitlines()
    assert srun.endswith("--workdir=/shared/runs/text --distributed --config.train.steps=5")
    assert requeue == f"scontrol requeue {env['SLURM_JOB_ID']}"


def test_slurm_hands_the_signal_on_and_waits(tmp_path):
    """A SIGTERM to the script reaches the processes, not srun, and the script outlives it to put the job back."""
    env = cluster(tmp_path, _WAITING)
    with subprocess.Popen(["bash", str(_PODS / "slurm.sh")], env=env, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert [running.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
            running.send_signal(signal.SIGTERM)
            running.communicate(timeout=30)
        finally:
            running.kill()
    asked = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert running.returncode == 75 and asked == ["srun", "scancel", "scontrol"]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_slurm_requeues_nothing_else(tmp_path, code):
    """A run that is done, failed, or was given wrong input ends the job with its code."""
    done = bash("slurm.sh", env=cluster(tmp_path, f"import sys; sys.exit({code})"))
    assert done.returncode == code and "scontrol" not in (tmp_path / "log").read_text()


def test_slurm_asks_for_a_signal_and_to_be_requeued():
    """The lines that sbatch reads: a signal to the script, minutes before the end."""
    asked = re.findall(r"^#SBATCH (.*)$", (_PODS / "slurm.sh").read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=B:TERM@180", "--ntasks-per-node=1"} <= set(asked)


def test_the_jobset_goes_on_after_75_and_after_a_lost_node(tmp_path):
    """Both fail the Job by its podFailurePolicy, for which alone the JobSet starts again without counting."""
    found = yaml.safe_load(bash("gke.sh", env={**os.environ, **_GKE}).stdout)
    rules = found["spec"]["failurePolicy"]["rules"]
    assert rules == [{"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}]
    (job,) = (each["template"]["spec"] for each in found["spec"]["replicatedJobs"])
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    saved, lost = job["podFailurePolicy"]["rules"]
    assert saved["action"] == lost["action"] == "FailJob" and pod["restartPolicy"] == "Never"
    assert saved["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [75]}
    assert lost["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_all_three_start_the_same_command(tmp_path):
    """Word for word, with what was added to the call."""
    words = ("--config.name=it's, all", "--config.mesh.fsdp=16")
    env = {**cluster(tmp_path, ""), "PYTHON": "echo"}
    slurm = bash("slurm.sh", *words, env=env).stdout.splitlines()[0]
    jobset = yaml.safe_load(bash("gke.sh", *words, env={**os.environ, **_GKE}).stdout)
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][0] == "python" and " ".join(container["command"][1:]) == slurm
    asked = cloud(tmp_path / "tpu", *words, states=("ACTIVE",), ends=("0",))[1]
    (remote,) = (re.search(r"\{ (python3 .*); echo", line)[1] for line in asked if " ssh " in line)
    assert shlex.split(remote)[1:] == container["command"][1:]


def cloud(folder: pathlib.Path, *words: str, states, ends) -> tuple[int, list[str]]:
    """cloud_tpu.sh's exit code and what it asked of gcloud, whose queued resource goes through these states, and whose
    hosts end with these codes, one of each a time."""
    folder.mkdir(exist_ok=True)
    (folder / "states").write_text("\n".join(states) + "\n")
    (folder / "ends").write_text("\n".join(ends) + "\n")
    (folder / "checkout").mkdir()
    next_of = 'next() { head -n1 "$1"; [ "$(wc -l < "$1")" -gt 1 ] && sed -i 1d "$1"; true; }'
    gcloud = f"""{next_of}
echo "$*" >> "$LOG"
case "$*" in
  *describe*) next {folder}/states ;;
  *' ssh '*) for code in $(next {folder}/ends); do echo "launch.py ended with $code"; done ;;
esac"""
    env = {**stand_ins(folder, gcloud=gcloud), **_TPU}
    done = bash("cloud_tpu.sh", *words, env=env, cwd=folder / "checkout")
    return done.returncode, (folder / "log").read_text().splitlines()


@pytest.mark.parametrize(
    "states,ends,code,verbs",
    [
        (["", "PROVISIONING", "ACTIVE"], ["0 0"], 0, "create scp ssh delete"),
        (["ACTIVE"], ["75 75", "0 0"], 0, "scp ssh scp ssh delete"),
        (["ACTIVE", "SUSPENDED", "", "ACTIVE"], ["134", "0 0"], 0, "scp ssh delete create scp ssh delete"),
        (["ACTIVE"], ["2 134"], 2, "scp ssh delete"),
        (["ACTIVE"], ["1 134"], 1, "scp ssh scp ssh scp ssh delete"),
    ],
    ids=["done", "saved", "taken away", "wrong input", "failing"],
)
def test_a_cloud_tpu_run_goes_on_until_it_is_done(tmp_path, states, ends, code, verbs):
    """On the same slice after 75, on a new one when it was taken away, not at all after wrong input; the slice is given
    back at the end of all."""
    returned, asked = cloud(tmp_path / "tpu", states=states, ends=ends)
    found = [word for line in asked for word in line.split()[2:4] if word in verbs.split()]
    assert (returned, " ".join(found)) == (code, verbs)
    assert all("--worker=all" in line for line in asked if " ssh " in line or " scp " in line)
