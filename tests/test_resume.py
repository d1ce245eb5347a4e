# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run that is killed or asked to stop, and goes on: the bits of the run that nothing ever stopped.

Each scenario is a chain of processes, started as a user would; the tests look at what they left.
"""

import contextlib
import signal

import makers
import pytest
import resuming

from tl_jax import runs
from tl_jax.config import Phase, Plan
from tl_jax.report import metrics
from tl_jax.train.callbacks import Callback
from tl_jax.train.stopping import Stopped

# The command line, in a process that sends signals to itself after a step. Torch, which tensorboardX imports where it
# is installed, is left out: it takes longer than the run.
_LAUNCH = """
import os, signal, sys, time
sys.modules["torch"] = None
sent, step, pause, *words = sys.argv[1:]
from tl_jax.report.console import Console
on_log = Console.on_log

def signalling(self, number, metrics):
    on_log(self, number, metrics)
    if number >= int(step):
        time.sleep(float(pause))
    if number == int(step):
        for name in filter(None, sent.split(",")):
            os.kill(os.getpid(), signal.Signals[name])

Console.on_log = signalling
sys.argv = ["launch.py", *words]
from tl_jax.cli import main
main()
"""


def launch(config: str, workdir, signals: str = "", step: int = 0, pause: float = 0.0, processes: int = 1):
    """The outcome of each process; `signals` are sent by process 0 to itself once step `step` is logged."""
    words = ["--config=" + config, f"--workdir={workdir}", "--quiet"]
    running, port = [], makers.free_port()
    for i in range(processes):
        several = [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={i}"]
        told = (signals, str(step)) if i == 0 else ("", str(step))
        running.append(makers.start("-c", _LAUNCH, *told, str(pause), *words, *(several if processes > 1 else [])))
    if "SIGKILL" in signals and processes > 1:
        # The machine is gone: the heartbeat would end the others too, twenty seconds later.
        with contextlib.suppress(Exception):
            running[0].wait(120)
        for process in running[1:]:
            process.kill()
    return makers.finish(*running)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Configs and workdirs of this module."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def texts(home):
    """Dropout, buckets, shuffling, accumulation; 6 steps an epoch, checkpoints within an epoch."""
    exp = makers.text_run(home, epochs=3, accumulate=2, log_every=1, save_every=4)
    return makers.write_config(exp, home / "texts.json")


@pytest.fixture(scope="module")
def images(home):
    """BatchNorm, augmentation, reading threads, accumulation; 3 steps an epoch."""
    return makers.write_config(makers.image_run(home, epochs=4, save_every=2), home / "images.json")


@pytest.fixture(scope="module")
def phased(home):
    """The head, then norms with it, then LoRA with it, 4 steps each, over an nf4 base and with averages."""
    makers.bert(home / "wide", hidden_size=64, intermediate_size=128, num_hidden_layers=1)
    exp = makers.text_run(home, epochs=None, steps=4, log_every=1, save_every=3, eval_every=4, ema=0.9)
    phases = tuple(Phase(Plan(train=train), steps=4) for train in (("head/.*",), ("head/.*", ".*norm/.*")))
    plan = {"plan__preset": "lora", "plan__rank": 2, "plan__lr": (), "plan__quantize": "nf4"}
    exp = makers.changed(exp, model__pretrained=str(home / "wide"), data__buckets=(), phases=phases, **plan)
    return makers.write_config(exp, home / "phased.json")


@pytest.fixture(scope="module")
def alone(home, texts):
    """One process: a run that nothing stopped, and one that was killed, stopped by a signal, and went on."""
    outcomes = {"unbroken": launch(texts, home / "one")}
    workdir = home / "killed_one"
    outcomes["killed"] = launch(texts, workdir, "SIGKILL", 10)
    outcomes["left"] = (metrics.read(workdir)[-1]["step"], [p.name for p in (workdir / "checkpoints").glob("*.json")])
    outcomes["stopped"] = launch(texts, workdir, "SIGTERM", 11)
    outcomes["saved"] = sorted(path.name for path in (workdir / "checkpoints").glob("*.json"))
    outcomes["gone on"] = launch(texts, workdir)
    return outcomes


@pytest.fixture(scope="module")
def pairs(home, images):
    """The same with two processes, where the signal goes to process 0 alone."""
    outcomes = {"unbroken": launch(images, home / "two", processes=2)}
    workdir = home / "killed_two"
    outcomes["killed"] = launch(images, workdir, "SIGKILL", 5, processes=2)
    outcomes["stopped"] = launch(images, workdir, "SIGTERM", 7, pause=0.5, processes=2)
    outcomes["gone on"] = launch(images, workdir, processes=2)
    return outcomes


def test_a_kill_leaves_the_log_and_a_whole_checkpoint(alone):
    """SIGKILL after step 10, in the middle of epoch 2; the save of step 8 was well under way or done."""
    assert alone["killed"][0][0] == -9
    last, checkpoints = alone["left"]
    assert last == 10
    assert {"6.json", "8.json"} & set(checkpoints)


def test_sigterm_saves_and_says_how_to_go_on(alone, home):
    """Exit 75 after the step and its save, with the command on stderr and no traceback."""
    [(rc, _, err)] = alone["stopped"]
    assert rc == 75, err
    assert "saved step 11; to go on, run again: " in err and f"--workdir={home / 'killed_one'}" in err
    assert "Traceback" not in err and "11.json" in alone["saved"]


def test_one_process_goes_on_as_if_nothing_had_happened(alone, home):
    """After a kill and a stop, the bits of the run that was left alone; logged every step, so no window moves."""
    for rc, _, err in (*alone["unbroken"], *alone["gone on"]):
        assert rc == 0, err
    resuming.assert_same_run(home / "killed_one", home / "one")


def test_a_kill_in_every_phase_changes_no_bit(home, phased):
    """SIGKILL before the first save, right after a phase's first step and within the last phase: moments, averages and
    the quantised base are those of the run that was left alone."""
    outcomes = [launch(phased, home / "phases", "SIGKILL", step) for step in (2, 5, 10)]
    assert [rc for ((rc, _, _),) in outcomes] == [-9] * 3
    for workdir in (home / "phases", home / "phases_alone"):
        [(rc, _, err)] = launch(phased, workdir)
        assert rc == 0, err
    resuming.assert_same_run(home / "phases", home / "phases_alone")


def test_a_second_signal_ends_at_once(home, texts):
    """Ctrl-C twice: exit 130 without waiting for the save; the checkpoint before it is whole and goes on."""
    workdir = home / "twice"
    [(rc, _, err)] = launch(texts, workdir, "SIGINT,SIGINT", 9)
    assert rc == 130, err
    assert not (workdir / "checkpoints" / "9.json").exists()
    assert int(runs.open_run(workdir)[1].step) in (6, 8)


def test_ctrl_c_saves_and_exits_with_130(tmp_path, home):
    """In this process: the step is finished and saved before `Stopped` is raised."""

    class CtrlC(Callback):
        def on_log(self, step, metrics):
            if step == 2:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped) as stopped:
        runs.run(makers.image_run(home, epochs=4), tmp_path, callbacks=[CtrlC()], quiet=True)
    assert (stopped.value.step, stopped.value.exit_code) == (2, 130)
    assert (tmp_path / "checkpoints" / "2.json").exists()


def test_two_processes_stop_together(pairs):
    """The signal went to process 0 alone; both save, say so and exit with 75."""
    assert pairs["killed"][0][0] == -9
    for rc, _, err in pairs["stopped"]:
        assert rc == 75, err
        assert "to go on, run again" in err


def test_two_processes_go_on_as_if_nothing_had_happened(home, pairs):
    """After a kill and a stop, the bits of the run of two processes that was left alone."""
    for rc, _, err in (*pairs["unbroken"], *pairs["gone on"]):
        assert rc == 0, err
    resuming.assert_same_run(home / "killed_two", home / "two")
