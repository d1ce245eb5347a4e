# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: every verb, and for every mistake one line, exit code 2 and nothing left behind."""

import csv
import json
import pickle
import re
import shutil

import makers
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tl_jax import cli
from tl_jax.report import metrics


def assert_one_line(outcome, *told: str) -> None:
    """Exit code 2, one line that begins with `error: `, the last one, and no traceback."""
    code, _, err = outcome
    lines = err.splitlines()
    assert code == 2, err
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:] and "Traceback" not in err, err
    for text in told:
        assert text in lines[-1], lines[-1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data, checkpoints and runs of this module."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def texts(home):
    """A config of one epoch of texts."""
    return makers.write_config(makers.text_run(home, epochs=1), home / "texts.json")


@pytest.fixture(scope="module")
def text_run(home, texts):
    """(workdir, stdout) of a finished run on texts."""
    code, out, err = makers.cli_run("train", f"--config={texts}", f"--workdir={home / 'text_run'}", "--json")
    assert code == 0, err
    return home / "text_run", out


@pytest.fixture(scope="module")
def images(home):
    """A config of one epoch over a folder of images."""
    exp = makers.image_run(home, epochs=1)
    exp = makers.changed(exp, data__source="folder", data__path=makers.image_folder(home / "folder"), data__threads=2)
    return makers.write_config(exp, home / "images.json")


@pytest.fixture(scope="module")
def mended(home, images):
    """(outcome with a broken image, what that left, outcome once it was mended) of runs in one workdir."""
    broken = sorted((home / "folder").rglob("*.png"))
    whole = {path: path.read_bytes() for path in broken}
    for path in broken:
        path.write_bytes(whole[path][:60])
    command = ("train", f"--config={images}", f"--workdir={home / 'image_run'}")
    first = makers.cli_run(*command)
    left = sorted(path.name for path in (home / "image_run").iterdir())
    for path, content in whole.items():
        path.write_bytes(content)
    return first, left, makers.cli_run(*command)


def head_of_two(home, tmp_path):
    """A published classifier of two classes, where the data has three."""
    shutil.copytree(home / "bert", tmp_path / "two")
    tensors = load_file(tmp_path / "two" / "model.safetensors")
    tensors |= {"classifier.weight": np.ones((2, 16), np.float32), "classifier.bias": np.ones(2, np.float32)}
    save_file(tensors, tmp_path / "two" / "model.safetensors")
    return [f"--config.model.pretrained={tmp_path / 'two'}", "--config.model.fresh=()"]


def truncated_weights(home, tmp_path):
    """A download that broke off."""
    shutil.copytree(home / "bert", tmp_path / "short")
    file = tmp_path / "short" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return [f"--config.model.pretrained={tmp_path / 'short'}"]


def pickled_weights(home, tmp_path):
    """PyTorch's old format."""
    shutil.copytree(home / "bert", tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    return [f"--config.model.pretrained={tmp_path / 'pickle'}"]


def disguised_pickle(home, tmp_path):
    """The same under a name that promises otherwise."""
    shutil.copytree(home / "bert", tmp_path / "disguised")
    (tmp_path / "disguised" / "model.safetensors").write_bytes(pickle.dumps({"weight": 1}))
    return [f"--config.model.pretrained={tmp_path / 'disguised'}"]


def empty_class(home, tmp_path):
    """A class folder without an image, beside others that have some."""
    makers.image_folder(tmp_path / "empty", 6)
    (tmp_path / "empty" / "stone").mkdir()
    return ["--config.data.source=folder", f"--config.data.path={tmp_path / 'empty'}"]


def label_out_of_range(home, tmp_path):
    """Labels 0 to 2 and two names."""
    makers.images(tmp_path / "images.npz")
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    return ["--config.data.source=npz", f"--config.data.path={tmp_path / 'images.npz'}"]


@pytest.mark.parametrize(
    "words, told",
    [
        (["--config=nowhere.json"], "nowhere.json: no such config file"),
        (["--config.data.path=nowhere.tsv"], "nowhere.tsv: not found"),
        (["--config.train.stesp=3"], "train.stesp: no such field; did you mean 'steps'?"),
        (["--config.train.batch_size=many"], "train.batch_size is 'many' (str), must be int"),
        (["--config.plan.train=('heda/.*',)"], "heda/.*"),
        (["--config.train.batch_size=12"], "12 is not divisible by data 8 x fsdp 1 = 8 of the mesh. Use 8 or 16."),
        (["--config.mesh.data=3"], "needs 3 devices, there are 8"),
        (["--config.data.options.label=lable"], "has no column 'lable'; did you mean 'label'?"),
        (["--config.optimizer.options.b3=1"], "adamw takes no 'b3'"),
        (["--nonsense"], "nonsense"),
        (["trian"], "trian: no such verb; did you mean 'train'?"),
        (["train", "more"], "more: is one word too many for train"),
        (head_of_two, "head/kernel"),
        (truncated_weights, "no readable safetensors file"),
        (pickled_weights, "convert --from-torch="),
        (disguised_pickle, "is a pickle, which can run code"),
        (empty_class, "'stone' holds no image"),
        (label_out_of_range, "labels up to 2, classes.json names 2 classes"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(home, texts, tmp_path, words, told):
    """What is wrong is named, and there is no workdir that a later run would go on from."""
    words = words(home, tmp_path) if callable(words) else words
    outcome = makers.cli_run(f"--config={texts}", f"--workdir={tmp_path / 'run'}", *words)
    assert_one_line(outcome, told)
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file_is_refused(texts, tmp_path):
    """And the file is left alone."""
    (tmp_path / "file").write_text("mine")
    assert_one_line(makers.cli_run(f"--config={texts}", f"--workdir={tmp_path / 'file'}"), "cannot be used as workdir")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_mistake_that_only_training_shows(mended, home):
    """A broken image among the training data: one line that names it; the workdir holds the run's description and no
    summary, and once the image is mended the same command ends well."""
    first, left, again = mended
    assert_one_line(first, ".png", str(home / "folder"))
    assert {"config.json", "plan.json", "receipt.json", "splits.json"} <= set(left)
    assert "summary.json" not in left and not [name for name in left if name.endswith(".tmp")]
    assert again[0] == 0, again[2]
    assert json.loads((home / "image_run" / "summary.json").read_text())["steps"] == 2


def test_train_with_json_ends_with_the_summary(text_run):
    """One JSON object, the content of `summary.json`, is all of stdout."""
    workdir, out = text_run
    assert json.loads(out.splitlines()[-1]) == json.loads((workdir / "summary.json").read_text())


def test_the_summary_table_is_printed_at_the_end(mended):
    """Without `--json`: what was done, where, and a row for every metric."""
    out = mended[2][1]
    assert re.search(r"images: 2 steps in [\d.]+ s, in ", out)
    assert all(f"| {name}" in out for name in ("accuracy", "macro_f1", "loss"))


def test_eval_repeats_the_test_metrics(text_run):
    """On the run's own split the numbers are those of the summary."""
    workdir, out = text_run
    code, text, err = makers.cli_run("eval", f"--workdir={workdir}", "--json")
    assert code == 0, err
    found, summary = json.loads(text.splitlines()[-1]), json.loads(out.splitlines()[-1])
    assert found["metrics"] == summary["test"] and found["intervals"] == summary["intervals"]["test"]


def test_eval_takes_other_labelled_data(text_run, home, tmp_path):
    """All records of the file count, whatever splits the run had."""
    makers.texts(tmp_path / "new.tsv", 9)
    code, out, err = makers.cli_run("eval", f"--workdir={text_run[0]}", f"--input={tmp_path / 'new.tsv'}", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["examples"] == 9, err


def test_predict_reads_a_text_file(text_run, tmp_path):
    """One row a line: its key, a class, and chances that sum to 1."""
    (tmp_path / "new.txt").write_text("word1 cat word2\nword3 iron\n")
    words = (f"--workdir={text_run[0]}", f"--input={tmp_path / 'new.txt'}", f"--output={tmp_path / 'out.csv'}")
    code, out, err = makers.cli_run("predict", *words)
    assert code == 0 and out == f"2 predictions in {tmp_path / 'out.csv'}\n", err
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["key"] for row in rows] == ["new.txt:1", "new.txt:2"]
    for row in rows:
        chances = {name: float(row[f"p({name})"]) for name in makers.CLASSES}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5) and max(chances, key=chances.get) == row["label"]
    assert_one_line(makers.cli_run("predict", *words), "out.csv: exists")


def test_predict_reads_a_folder_of_images(mended, home, tmp_path):
    """Keys are paths within the folder; a broken image is told by its name and leaves no file."""
    assert mended[2][0] == 0
    folder = tmp_path / "new"
    makers.image_folder(folder, 6)
    words = (f"--workdir={home / 'image_run'}", f"--input={folder}", f"--output={tmp_path / 'out.csv'}")
    code, _, err = makers.cli_run("predict", *words)
    assert code == 0, err
    keys = [row["key"] for row in csv.DictReader((tmp_path / "out.csv").read_text().splitlines())]
    assert keys == sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    (tmp_path / "out.csv").unlink()
    (folder / "fruit" / "1.png").write_bytes(b"no image")
    assert_one_line(makers.cli_run("predict", *words), "1.png")
    assert not (tmp_path / "out.csv").exists()


def test_predict_refuses_what_the_run_cannot_read(text_run, home, tmp_path):
    """Images for a run on texts."""
    makers.image_folder(tmp_path / "new", 3)
    words = (f"--workdir={text_run[0]}", f"--input={tmp_path / 'new'}", f"--output={tmp_path / 'out.csv'}")
    assert_one_line(makers.cli_run("predict", *words), "holds images, the run was trained on texts")


def test_compare_is_a_table_of_runs(text_run, mended, home):
    """One row a config; a folder that is no run is named."""
    code, out, err = makers.cli_run("compare", str(text_run[0]), str(home / "image_run"))
    assert code == 0 and "| texts " in out and "| images " in out, err
    assert_one_line(makers.cli_run("compare", str(home / "nowhere")), "nowhere has no summary.json")
    assert_one_line(makers.cli_run("compare"), "needs the folders of finished runs")


def test_convert_writes_the_same_tensors(home, texts, tmp_path):
    """From published weights to published weights, byte for byte, and never over something else."""
    source, target = home / "bert", tmp_path / "copy"
    code, out, err = makers.cli_run("convert", f"--from={source}", f"--to={target}")
    assert code == 0 and f"written to {target}" in out, err
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (target, source))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert_one_line(makers.cli_run("convert", f"--from={source}", f"--to={target}"), "copy: is not empty")


def test_convert_reads_a_pytorch_file(home, texts, tmp_path):
    """The state dict becomes safetensors that can be loaded; a file that is none is told, and leaves no folder."""
    import torch

    shutil.copytree(home / "bert", tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "model.safetensors").unlink()
    file, target = tmp_path / "old" / "pytorch_model.bin", tmp_path / "new"
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, file)
    code, out, err = makers.cli_run("convert", f"--from-torch={file}", f"--to={target}")
    assert code == 0 and f"{len(tensors)} tensors" in out, err
    for name, tensor in load_file(target / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, tensors[name])
    file.write_bytes(b"no pickle")
    bad = makers.cli_run("convert", f"--from-torch={file}", f"--to={tmp_path / 'bad'}")
    assert_one_line(bad, "holds more than tensors, or is broken")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    "words, told",
    [
        (["eval", "--workdir=nowhere"], "nowhere: holds no run"),
        (["eval"], "--workdir: is missing"),
        (["predict", "--workdir=nowhere", "--input=x"], "--output: is missing"),
        (["convert", "--from=x"], "needs --to and exactly one of --from and --from-torch"),
        (["convert", "--from=./nowhere", "--to=y"], "nowhere: no such file or folder"),
        (["convert", "--from-torch=nowhere.bin", "--to=y"], "nowhere.bin: no such file"),
        (["eval", "--workdir=x", "--config.seed=1"], "has no effect on eval"),
    ],
)
def test_a_verb_tells_what_it_needs(words, told, tmp_path, monkeypatch):
    """And makes nothing."""
    monkeypatch.chdir(tmp_path)
    assert_one_line(makers.cli_run(*words), told)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_too():
    """With `--debug` the one line is still the last."""
    code, _, err = makers.cli_run("--config=nowhere.json", "--debug")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: nowhere.json")


def test_help_lists_the_verbs_that_there_are():
    """Those and no others, and the shipped configs."""
    code, out, _ = makers.cli_run("--help")
    listed = re.findall(r"^  (\w+) {2,}\S", out, re.MULTILINE)
    assert code == 0 and listed == list(cli._VERBS)
    assert "quickstart" in out.splitlines()[-1]


def test_a_process_of_its_own_makes_no_noise(home, texts):
    """What is printed ends with the JSON, stderr has no line of absl's INFO and no warning, and the exit code is 0."""
    [(rc, out, err)] = makers.finish(
        makers.start("launch.py", f"--config={texts}", f"--workdir={home / 'own'}", "--json")
    )
    assert rc == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == metrics.read(home / "own")[-1]["step"]
    noise = [line for line in err.splitlines() if re.match(r"[IWEF]\d{4} |.*Warning", line)]
    assert noise == [] and "compiling the step" in err


def test_a_process_of_its_own_exits_with_2(tmp_path):
    """The same line as in this process, and nothing else on stderr."""
    [(rc, out, err)] = makers.finish(makers.start("launch.py", "--config=nowhere.json", f"--workdir={tmp_path / 'x'}"))
    assert (rc, out) == (2, "") and err.startswith("error: nowhere.json: no such config file") and err.count("\n") == 1


def test_of_two_processes_the_one_with_the_mistake_tells_it(home, texts):
    """Exit code 2 and one line there; the other goes down with it at once instead of waiting for its part."""
    several = [f"--coordinator=localhost:{makers.free_port()}", "--num_processes=2", f"--workdir={home / 'two'}"]
    paths = ["nowhere.tsv", str(home / "texts.tsv")]
    words = ["launch.py", f"--config={texts}", *several]
    running = [makers.start(*words, f"--config.data.path={p}", f"--process_id={i}") for i, p in enumerate(paths)]
    (rc, _, err), (other, _, _) = makers.finish(*running, timeout=60)
    assert rc == 2 and "Traceback" not in err
    assert [line for line in err.splitlines() if "error: " in line] == [err.splitlines()[-1]]
    assert other != 0
