# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: verbs, flags, and errors as one clear line.

    python launch.py [VERB] --config=configs/x.py --workdir=runs/x [--config.train.batch_size=64 …] [--json]

Exit codes: 0 done; 2 the user's input is wrong; 75 stopped by SIGTERM and 130 by Ctrl-C, both after saving, the same
command goes on; 1 anything else.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from tl_jax import config
from tl_jax.config import DETERMINISTIC
from tl_jax.core import config_files, heap
from tl_jax.core.errors import UserError, did_you_mean

_HELP = """\
python launch.py [VERB] [--config=CONFIG] [--workdir=DIR] [--config.FIELD=VALUE ...]

  train    train, evaluate, write everything to the workdir (the default verb; a workdir goes on by itself)
  eval     --workdir=R [--input=PATH]                      metrics of a run on its test split, or on labelled PATH
  predict  --workdir=R --input=PATH --output=F.csv         classes of images or texts
  compare  R1 R2 ...                                       a Markdown table of runs, mean and deviation over seeds
  average  R [--to=DIR]                                    between a run's pretrained and tuned weights (WiSE-FT)
           R1 R2 ... [--to=DIR]                            uniform and greedy soup of runs that began alike; the network
                                                           that is best on validation goes to --to, as export writes it
  calibrate  --workdir=R                                   fit a temperature on validation; predict uses it from then on
  convert  --from=DIR --to=DIR                             read published weights, write them again, checked
           --from-torch=FILE --to=DIR                      a PyTorch file as safetensors
  export   --workdir=R --to=DIR [--format=hf]              a run's network as transformers reads it, with a model card
           --workdir=R --to=DIR --format=peft              its adapters alone, as PEFT reads them
           --workdir=R --to=DIR --format=stablehlo         a program and its weights, which JAX runs without tl_jax
  plan     --config=CONFIG                                 what would train, at which rate, its cost and memory
           --config=CONFIG --topology=v5e:4x4              the same on a pod that is not there; h100:2x8 for GPUs
  bench    --config=CONFIG [--synthetic] [--steps=20]      time, FLOPs and memory of a step, input, checkpoint
           --config=CONFIG --against=torch [--repeats=3]   and of the same step in PyTorch, in turn

CONFIG is a .py file, a run's config.json, or a name: """


class _Flags:
    """The flags of this program, in absl's registry."""

    def __init__(self):
        define = flags.DEFINE_string
        define("config", "quickstart", "A .py config, a run's config.json, or the name of a shipped config.")
        define("workdir", None, "Folder of the run; runs/<config> by default.")
        define("input", None, "File or folder to evaluate or predict.")
        define("output", None, "CSV file to write predictions to.")
        define("from", None, "Folder or hub id to convert.")
        define("from_torch", None, "PyTorch file to convert.")
        define("to", None, "New folder to write to.")
        define("format", "hf", "What to export: hf, for transformers; peft, adapters alone; stablehlo, a program.")
        define("coordinator", None, "HOST:PORT of process 0, to start several processes by hand.")
        define("topology", None, "Pod to plan for, as v5e:4x4 or h100:2x8; nothing of it need be here.")
        define("compile_cache", None, "Folder to keep compiled programs in; by default one of yours; 'off' for none.")
        flags.DEFINE_bool("synthetic", False, "Measure with random arrays in place of the config's data.")
        flags.DEFINE_integer("classes", 2, "Classes of synthetic data.")
        flags.DEFINE_integer("steps", 20, "Steps to measure.")
        define("against", None, "torch: measure the same step in PyTorch too, in turn.")
        flags.DEFINE_integer("repeats", 3, "Rounds of either side, with --against.")
        flags.DEFINE_integer("threads", None, "Cores to measure on; 2 with --against.")
        flags.DEFINE_integer("num_processes", None, "Processes in all, with --coordinator.")
        flags.DEFINE_integer("process_id", None, "Number of this process, with --coordinator.")
        flags.DEFINE_bool("distributed", False, "Start as one process of a pod; the cluster is detected.")
        flags.DEFINE_bool("json", False, "Print one JSON object as the last line of stdout.")
        flags.DEFINE_bool("quiet", False, "Print results only.")
        flags.DEFINE_bool("debug", False, "Show tracebacks of user errors too.")


_flags = _Flags()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    heap.keep_freed_memory()
    app.run(_main, argv=list(sys.argv if argv is None else argv), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[Any]:
    """[program, positional arguments, config overrides]; absl sees all other flags."""
    overrides: dict[str, str] = {}
    rest = []
    words = iter(argv)
    for word in words:
        if word in ("--help", "-h", "-help", "--helpfull"):
            print(_HELP + ", ".join(config_files.shipped()))
            sys.exit(0)
        if word.startswith("--config."):
            name, equals, value = word.removeprefix("--config.").partition("=")
            overrides[name] = value if equals else next(words, "")
        else:
            # In absl a flag's name may hold dashes or underscores alike.
            name, equals, value = word.partition("=")
            rest.append(name.replace("-", "_").replace("__", "--", 1) + equals + value if word[:2] == "--" else word)
    try:
        left = flags.FLAGS(rest)
    except flags.Error as error:
        _tell(UserError("", str(error).rstrip("."), "see --help"), debug=False)
        sys.exit(2)
    return [left[0], left[1:], overrides]


def _main(parsed: list[Any]) -> None:
    _, words, overrides = parsed
    from tl_jax.parallel import processes
    from tl_jax.train.stopping import Stopped

    verb = words[0] if words else "train"
    try:
        if verb not in _VERBS:
            raise UserError(verb, f"no such verb{did_you_mean(verb, _VERBS)}", "see --help")
        exp = _experiment(verb, flags.FLAGS, overrides)
        _set_up(flags.FLAGS, exp, keep=verb != "bench")
        with processes.leave_on_error(passing=(UserError, Stopped, FloatingPointError)):
            result = _VERBS[verb](flags.FLAGS, words[1:], exp)
        if flags.FLAGS.json:
            print(json.dumps(result))
    except UserError as error:
        _tell(error, flags.FLAGS.debug)
        processes.leave(2)
    except Stopped as stopped:
        # All processes stop together, and may wait for each other on the way out.
        print(f"saved step {stopped.step}; to go on, run again: {shlex.join(sys.orig_argv)}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        processes.leave(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _tell(error: UserError, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def _set_up(FLAGS, exp: config.Experiment | None, keep: bool) -> None:
    """What only the command line may do: flags of JAX and XLA, processes, the compile cache, unless nothing is kept."""
    import jax
    from absl import logging

    from tl_jax.parallel import processes

    logging.set_verbosity(logging.WARNING)  # absl's main would show every library's remarks.
    if exp is not None and exp.train.deterministic:
        # Read when the backend starts, so before any process or device is asked for.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    if keep and FLAGS.compile_cache != "off":
        jax.config.update("jax_compilation_cache_dir", FLAGS.compile_cache or _private_cache())
    processes.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.distributed)


def _private_cache() -> str:
    """A folder that only this user can write to: what lies there is run."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(home, "tl_jax", "compiled")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    return folder


def _experiment(verb: str, FLAGS, overrides: Mapping[str, str]) -> config.Experiment | None:
    """The config of a verb that takes one; the others read that of a run."""
    if verb in ("train", "plan", "bench"):
        return config.load(FLAGS.config, overrides)
    if overrides:
        raise UserError(f"--config.{next(iter(overrides))}", f"has no effect on {verb}", "see --help")
    return None


def _workdir(FLAGS, exp: config.Experiment | None = None) -> str:
    if FLAGS.workdir:
        return FLAGS.workdir
    if exp is None:
        raise UserError("--workdir", "is missing", "name the folder of a run")
    return os.path.join("runs", exp.name)


def _train(FLAGS, words, exp) -> dict[str, Any]:
    import jax

    from tl_jax import runs
    from tl_jax.report import table

    _no_more(words, "train")
    workdir = _workdir(FLAGS, exp)
    summary = runs.run(exp, workdir, quiet=FLAGS.quiet)
    if jax.process_index() == 0 and not FLAGS.json:
        print(f"\n{exp.name}: {summary['steps']} steps in {summary['seconds']:.1f} s, in {workdir}\n")
        print(table.closing(summary))
    return summary


def _eval(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax import apply

    _no_more(words, "eval")
    result = apply.evaluate_run(_workdir(FLAGS), FLAGS.input)
    if not FLAGS.json:
        for name, value in result["metrics"].items():
            low, high = result["intervals"][name]
            print(f"{name:<10} {value:.4f} [{low:.4f}, {high:.4f}]")
    return result


def _predict(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax import apply, calibration

    _no_more(words, "predict")
    for name in ("input", "output"):
        if not FLAGS[name].value:
            raise UserError(f"--{name}", "is missing")
    count = apply.predict_file(_workdir(FLAGS), FLAGS.input, FLAGS.output)
    temperature = calibration.saved_temperature(_workdir(FLAGS))
    if not FLAGS.json:
        print(f"{count} predictions in {FLAGS.output}")
        if temperature is not None:
            print(f"their probabilities are at temperature {temperature:.4g} (calibration.json)")
    return {"predictions": count, "output": FLAGS.output, "temperature": temperature}


def _compare(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax.report import table

    if not words:
        raise UserError("compare", "needs the folders of finished runs", "for instance: compare runs/a runs/b")
    text = table.compare(words)
    if not FLAGS.json:
        print(text)
    return {"table": text}


def _average(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax import averaging

    found = averaging.average_runs(words, FLAGS.to)
    if not FLAGS.json:
        print(found["table"])
        if FLAGS.to:
            print(f"It is in {FLAGS.to}.")
    return found


def _calibrate(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax import calibration
    from tl_jax.report import table

    _no_more(words, "calibrate")
    found = calibration.calibrate_run(_workdir(FLAGS))
    if not FLAGS.json:
        print(f"{table.calibrated(found)}\n\ntemperature {found['temperature']:.4g}; predict uses it from now on")
    return found


def _convert(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax import apply

    _no_more(words, "convert")
    source = FLAGS["from"].value
    if (source is None) == (FLAGS.from_torch is None) or not FLAGS.to:
        raise UserError("convert", "needs --to and exactly one of --from and --from-torch")
    text = apply.convert_torch(FLAGS.from_torch, FLAGS.to) if source is None else apply.convert(source, FLAGS.to)
    if not FLAGS.json:
        print(text)
    return {"to": FLAGS.to}


def _export(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax import apply

    _no_more(words, "export")
    if FLAGS.format not in ("hf", "peft", "stablehlo"):
        raise UserError("--format", f"is {FLAGS.format!r}, must be hf, peft or stablehlo")
    if not FLAGS.to:
        raise UserError("--to", "is missing", "name a new folder")
    text = apply.export(_workdir(FLAGS), FLAGS.to, FLAGS.format)
    if not FLAGS.json:
        print(f"written; load it with {text}")
    return {"to": FLAGS.to}


def _plan(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax import costs

    _no_more(words, "plan")
    report = costs.report(exp, _pod(FLAGS.topology))
    if not FLAGS.json:
        print(report.text)
    return {
        **dataclasses.asdict(report.figures),
        "earlier_phases": [dataclasses.asdict(figures) for figures in report.earlier_phases],
    }


def _pod(name: str | None):
    """The pod that is planned for; this process then simulates its devices."""
    import jax

    from tl_jax.parallel import topologies

    if name is None:
        return None
    pod = topologies.parse(name)
    # Nothing runs, so devices that are here stay free for others. Only before JAX starts can they be chosen.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", pod.count)
    if pod.kind.tpu is not None:
        # JAX keeps programs for devices that are not here, and cannot read them back.
        jax.config.update("jax_enable_compilation_cache", False)
    return pod


def _bench(FLAGS, words, exp) -> dict[str, Any]:
    from tl_jax.bench import against, report

    _no_more(words, "bench")
    threads = FLAGS.threads or (2 if FLAGS.against else None)
    if threads is not None:
        against.limit_threads(threads)
    asked = report.Asked(FLAGS.steps, FLAGS.synthetic, FLAGS.classes, FLAGS.against, FLAGS.repeats, threads)
    found = report.bench(exp, asked)
    if not FLAGS.json:
        print(found.text)
    return found.figures


def _no_more(words: Sequence[str], verb: str) -> None:
    if words:
        raise UserError(words[0], f"is one word too many for {verb}", "flags begin with --")


_VERBS: dict[str, Callable[[Any, Sequence[str], config.Experiment | None], dict[str, Any]]] = {
    "train": _train,
    "eval": _eval,
    "predict": _predict,
    "compare": _compare,
    "average": _average,
    "calibrate": _calibrate,
    "convert": _convert,
    "export": _export,
    "plan": _plan,
    "bench": _bench,
}
