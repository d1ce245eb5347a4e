# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run is: one frozen, typed value, from a Python file, a `config.json` or a name.

    exp = load("configs/quickstart.py", overrides={"train.steps": 20})

A Python config is trusted code with a function `config() -> Experiment`; `config.json` is data only. Overrides
are checked against the declared types, and an unknown field is refused with the nearest name. Imports no JAX.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tl_jax.core import config_files, limits, typed
from tl_jax.core.errors import UserError

# What XLA must be told, before it starts, to compute the same bits again on a GPU.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

Rules = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Model:
    """Which network, and where its weights come from.

    Attributes:
      pretrained: a directory with `config.json` and `*.safetensors`, a hub id, `package:NAME/FOLDER` for weights
        that an installed Python package carries, or the folder of a finished run.
      revision: branch, tag or commit of a hub id.
      family: the module in `tl_jax/models` (or a dotted module name) that builds the network; read from the
        checkpoint's `config.json` when `pretrained` is given.
      config: fields of the published `config.json`, over those of the checkpoint.
      fresh: patterns of parameter paths to initialise anew; every other parameter must be in the checkpoint.
      init: `pretrained` fills from the checkpoint, `random` keeps its architecture only.
      dtype: in what the network computes; trained parameters stay float32.
      frozen_dtype: in what all that was loaded and never trains is kept, but running statistics; float32 where None.
        `bfloat16` goes with the same `dtype`, which casts to it before every use, and gives the same bits in half the
        memory. (DoRA's magnitudes begin as lengths of what is kept.)
      drop_path: how often training drops a residual branch of the last block, for a whole example (stochastic depth,
        Huang et al. 2016); from 0 at the first block in even steps. What the checkpoint's config says where None.
    """

    pretrained: str | None = None
    revision: str | None = None
    family: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    init: Literal["pretrained", "random"] = "pretrained"
    dtype: Literal["float32", "bfloat16"] = "float32"
    frozen_dtype: Literal["bfloat16"] | None = None
    drop_path: float | None = None


@dataclass(frozen=True)
class Task:
    """What is asked of the features.

    Attributes:
      name: the module in `tl_jax/tasks`, or a dotted module name.
      options: fields of that task's own `Config`, for instance `{"multi_label": True, "pool": "mean"}`.
    """

    name: str = "classification"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """Which examples, how they are split and how they become arrays.

    Attributes:
      source: the module in `tl_jax/data/sources`, or a dotted module name.
      path: the file or folder to read.
      name: the name of a set, where a source has several (`tfds`).
      options: fields of that source's own `Config`, for instance `{"text": "sentence", "label": "stars"}`.
      group: name of a record field (patient, speaker) that never crosses a split; metrics are also given by group.
      validation, test: fractions taken from unsplit data, stratified by class.
      split_seed: which split; the experiment's seed does not change it.
      per_class: at most this many training examples of each class, drawn by `split_seed`.
      class_counts: the same for classes by name, over `per_class`: `{"red": 14, "white": 2}` makes rare ones.
      image_size: side in pixels; from the checkpoint's preprocessor file when None.
      augment: random changes of training images, in order: `flip`, `crop`, `rand` (RandAugment), `trivial`
        (TrivialAugment); of training sounds: `specaugment`, stripes of a spectrogram, or the spans that a network of
        raw waves hides by its own config, even where the stage that hides them is frozen. See `data.augment`.
      magnitude: strength of `rand`, 0 to 30.
      max_length: tokens of a text, or samples of a sound, at most; longer ones are cut there.
      buckets: padded lengths to choose from, the smallest that fits; `max_length` is always one, and the only one where
        this is empty. None finds up to six by the lengths of the training examples, see `data.lengths`.
      packing: for a language model without an encoder: several training texts share a row of `max_length` tokens and
        none sees another, see `data.packing`. An example of a batch is then a row, in which all words weigh the same.
        Evaluation stays one text a row, and `buckets` are of evaluation alone.
      sampler: `shuffle` shows every training example once an epoch; `balanced` shows every class equally often in an
        epoch of the same length, rare examples several times and only a part of the frequent ones, another each time.
      threads: reading threads; 0 reads in the training thread.
    """

    source: str = "folder"
    path: str | None = None
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    validation: float = 0.1
    test: float = 0.2
    split_seed: int = 0
    per_class: int | None = None
    class_counts: dict[str, int] = field(default_factory=dict)
    image_size: int | None = None
    augment: tuple[Literal["flip", "crop", "rand", "trivial", "specaugment"], ...] = ()
    magnitude: int = 9
    max_length: int = 128
    buckets: tuple[int, ...] | None = None
    packing: bool = False
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    threads: int = 2


@dataclass(frozen=True)
class Adapter:
    """What is put beside a kernel, to train in its place; see `nn.adapters` for the formulas.

    Attributes:
      kind: `lora`; `dora`, which learns the length of the kernel's columns too; `ia3`, one factor an output;
        `bottleneck`, a small network after the layer, which no kernel can take in and PEFT's files do not know.
      rank: numbers between the two layers of a `lora`, `dora` or `bottleneck`.
      alpha: the change of a `lora` or `dora` counts alpha / rank times; as the rank where None.
      use_rslora: alpha / √rank times instead.
      dropout: of what a `lora` or `dora` reads, in training, where `plan.dropout` draws; PEFT's `lora_dropout`.
      feedforward: an `ia3` scales the inputs of its layer instead of the outputs.
    """

    kind: Literal["lora", "dora", "ia3", "bottleneck"] = "lora"
    rank: int = 8
    alpha: float | None = None
    use_rslora: bool = False
    dropout: float = 0.0
    feedforward: bool = False


@dataclass(frozen=True)
class Plan:
    """What happens to every parameter: patterns over `/` paths (`re.fullmatch`), first match wins.

    Where there are adapters, they train, and the head, and of all else what `train` names. A pattern of `lr` or `decay`
    reaches the parameters of adapters only if it names them, as `.*/lora/.*`, `.*/ia3/.*` or `.*/prompt/.*`:
    `lr=((".*/lora/b/kernel", 16.0),)` is LoRA+ (Hayou et al. 2024).

    Attributes:
      preset: `full`, `linear_probe`, `last_n`, `norm_only`, `bias_only`, or `lora` on the queries and values of every
        block; its lists come after those given here.
      n: how many blocks `last_n` trains, with everything after them.
      rank: of the preset `lora`; 8 where None.
      adapters: by pattern of kernels, `((r"blocks/.*/attn/(query|value)/kernel", Adapter("lora", rank=8)),)`.
      prompt: so many trained rows in front of the words of every text, in place of adapters (Lester et al. 2021); see
        `nn.prompt`. They count as words of the network's limit, not of `data.max_length`.
      train: patterns of what trains; all else is frozen.
      lr: multiples of the learning rate; 1 where none matches.
      layer_decay: multiply the rate by this once more for every stage further from the head.
      lowest_lr: the same, given by the share of the rate that the first stage has (Howard & Ruder 2018).
      decay: weight decay by pattern; else the optimizer's, and 0 for leaves of at most one dimension.
      batchnorm: mode by pattern of stage names: `eval` (running statistics), `stats` (batch statistics, running ones
        follow), `train` (as `stats`, and scale and bias train). Default: `train` where a stage trains, else `eval`.
      dropout: `suffix` draws dropout from the cut on, `all` in every stage, `none` nowhere.
      quantize: keeps frozen kernels and tables in memory as 8 bits and a scale an output (`int8`), or as 4 bits and a
        scale for 64 numbers (`nf4`, Dettmers et al. 2023), and makes each whole in the stage that uses it. Training and
        evaluation see the rounded network; what is exported or merged has the file's own numbers under what trained.
    """

    preset: Literal["full", "linear_probe", "last_n", "norm_only", "bias_only", "lora"] | None = None
    n: int | None = None
    rank: int | None = None
    adapters: tuple[tuple[str, Adapter], ...] = ()
    prompt: int | None = None
    train: tuple[str, ...] = ()
    lr: Rules = ()
    layer_decay: float | None = None
    lowest_lr: float | None = None
    decay: Rules = ()
    batchnorm: tuple[tuple[str, Literal["eval", "stats", "train"]], ...] = ()
    dropout: Literal["suffix", "all", "none"] = "suffix"
    quantize: Literal["int8", "nf4"] | None = None


@dataclass(frozen=True)
class Optimizer:
    """How trained parameters move.

    Attributes:
      name: `adamw`, `sgd` (momentum), `lion`, `lamb`, `adafactor` or `muon`.
      learning_rate: the peak of the schedule.
      weight_decay: decoupled (for `sgd`, added to the gradient, as is usual there).
      schedule: after the rise: `constant`, `linear` or `cosine` down to `final` times the peak; `one_cycle` rises along
        a cosine too.
      warmup: share of all steps over which the rate rises; 0.1 where None, a quarter for `one_cycle`.
      initial, final: shares of the peak at which the rate begins and ends; 0 where None, 1/25 and 1e-5 for `one_cycle`.
      span: in a run of several phases, whether every `phase` has its own schedule or one spans the `run`.
      clip_norm: largest global norm of the trained gradients; None for no clipping.
      options: further arguments of the Optax transform, for instance `{"b2": 0.98}` or `{"momentum": 0.95}`.
    """

    name: Literal["adamw", "sgd", "lion", "lamb", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["constant", "linear", "cosine", "one_cycle"] = "cosine"
    warmup: float | None = None
    initial: float | None = None
    final: float | None = None
    span: Literal["phase", "run"] = "phase"
    clip_norm: float | None = 1.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Train:
    """How long, in what portions, and what is watched.

    Attributes:
      batch_size: examples a step, over all devices and processes.
      epochs, steps: the length, of the last phase where there are several; exactly one of them.
      accumulate: portions a batch is cut into inside the step; gradients are weighted by what each portion counts.
      eval_batch_size: examples an evaluation step; None for `batch_size`.
      eval_every: steps between evaluations; None for once an epoch.
      log_every: steps between lines of the log.
      save_every: steps between checkpoints; None for at every evaluation.
      metric: the validation metric that chooses the best checkpoint; None for the task's own.
      patience: evaluations without a better metric after which the run stops, counted in its last phase; None for
        never.
      cache: compute what crosses the cut once and keep it, instead of in every epoch: `auto` where that saves work, in
        memory, or in files where it is too much for that or `cache_dir` is given; `on` in memory or a refusal that says
        why not, `disk` the same in files, `off` never.
      cache_dir: folder of those files, which runs may share that have all below the cut in common: data, weights, sizes
        of batches; a folder of the run's own, until it is finished, where None.
      cache_views: with `data.augment`: so many changed versions of every training example are kept, and epochs show one
        after the other, instead of new ones in every epoch, which cannot be kept. None for new ones.
      remat: what a backward pass computes again rather than keep it, block by block above the cut: `none`; `dots`, all
        but the results of matrix products; `block`, all of it; `auto`, the first of these with which the compiled step
        fits a device, found when a run begins and kept when it goes on. `auto` is `none` where devices do not say what
        memory they have, as CPUs, in a sweep, and in an engine that a program builds itself; see `remat`.
      resident: keep the training set on the devices, images as bytes, and make the updates between two lines of the log
        in one dispatch; an evaluation of the validation set too, where that fits beside it. `auto` where it helps and
        fits, `on` or a refusal that says why not, `off` never. See `tl_jax.resident`.
      scan: hold equal blocks as one and compile one of them, see `core.stacks`: `on`, `off`, or `auto`, which does so
        for 24 of them or more, and never on a CPU, where a deep one runs a fifth slower.
      restore_best: test the best checkpoint by validation instead of the last.
      mixup, cutmix: mix the training images of a batch in pairs, by blending or by a box, and their labels with them; a
        number is the alpha of the shares' Beta distribution, 0 for never. Both: one or the other in every batch.
      l2_sp: strength of L2-SP, which holds what trains near the weights that were loaded: half of this times the
        squared distance is added to the loss. In place of `optimizer.weight_decay`, which is then best set to 0.
      l2_sp_fresh: the same for trained parameters that were not loaded, which it holds near zero; goes with `l2_sp`.
      ema: decay of a moving average of the trained parameters, which is then what is evaluated and written; it rises to
        this over the first steps. 0 for none. Running statistics are averages already and stay as they are.
      deterministic: the same bits again on a GPU, at the price of slower kernels (CPU and TPU always are). The command
        line tells XLA; a program that builds an engine itself sets `XLA_FLAGS` before JAX starts, or is refused.
    """

    batch_size: int = 32
    epochs: float | None = None
    steps: int | None = None
    accumulate: int = 1
    eval_batch_size: int | None = None
    eval_every: int | None = None
    log_every: int = 10
    save_every: int | None = None
    metric: str | None = None
    patience: int | None = None
    cache: Literal["auto", "on", "disk", "off"] = "auto"
    cache_dir: str | None = None
    cache_views: int | None = None
    remat: Literal["none", "dots", "block", "auto"] = "none"
    scan: Literal["auto", "on", "off"] = "auto"
    resident: Literal["auto", "on", "off"] = "auto"
    restore_best: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    l2_sp: float = 0.0
    l2_sp_fresh: float = 0.0
    ema: float = 0.0
    deterministic: bool = False


@dataclass(frozen=True)
class Distill:
    """A teacher whose answers are learnt beside the labels; nothing happens while `teacher` is None.

    The loss of an example is (1 - weight) task + weight T² KL(teacher || student) + features MSE, with both networks'
    probabilities at temperature T (Hinton et al. 2015), and MSE the mean squared difference of their pooled features
    (after FitNets, Romero et al. 2015). Where these have two widths, a linear layer that trains with the student and is
    not written brings the student's to the teacher's. With several labels an example, KL is that of each class's two
    answers, and the mean over classes. Remedies for classes and labels in `task.options` change the task's share alone.

    Attributes:
      teacher: as `model.pretrained`: a classifier of the same classes that reads the same inputs.
      temperature: T; the higher, the more the unlikely classes count.
      weight: share of the teacher's probabilities in [0, 1].
      features: what the MSE is multiplied with; 0 for none.
    """

    teacher: str | None = None
    temperature: float = 2.0
    weight: float = 0.5
    features: float = 0.0


@dataclass(frozen=True)
class Mesh:
    """Devices by axis: `data` copies the parameters, `fsdp` shards them, `tensor` splits the matrix products.

    At most one axis may be -1: all devices that the others leave.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a plan of its own, before the run's own plan takes over.

    What goes on training keeps its optimizer state and its average; what begins to train starts anew; what no longer
    trains stays as it is then. Adapters and a prompt belong to the network: they are named by the run's own plan, and a
    phase whose plan names the same ones trains them too.

    Attributes:
      plan: what happens to every parameter.
      epochs, steps: the length; exactly one of them.
      optimizer: fields of the run's `optimizer` that differ, for instance `{"learning_rate": 1e-2}`; its name and
        options stay.
    """

    plan: Plan = field(default_factory=Plan)
    epochs: float | None = None
    steps: int | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """Phases as published, instead of writing them out; see `plan.phases` for each.

    Attributes:
      name: `lp_ft` trains the head, then as the plan says (Kumar et al. 2022); `fine_tune` is fastai's; `ulmfit` adds
        one block after the other, from the last (Howard and Ruder 2018); `frozen_start` trains the head, then as the
        plan says, with one schedule over both (wav2vec2).
      epochs: of each phase that comes before the run's own plan.
      lr: multiple of the learning rate in those phases.
    """

    name: Literal["lp_ft", "fine_tune", "ulmfit", "frozen_start"] | None = None
    epochs: float = 1.0
    lr: float = 1.0


@dataclass(frozen=True)
class Experiment:
    """One run.

    Attributes:
      name: names the run in tables, and its folder; by default that of the config's file.
      seed: of fresh parameters, dropout, shuffling and augmentation.
      phases: what comes before `plan`, in order; `train.epochs` or `train.steps` is then the length of the last phase,
        in which `plan` and `optimizer` hold as they are.
      recipe: phases as published, in place of `phases`.
      baseline: overrides that make the run to compare with, for instance `{"model.init": "random"}`; it is run after
        this one, in the folder `baseline` of its workdir, and both results are printed side by side.
      pretrain: an experiment to run first, in the folder `pretrain`; its result is this one's `model.pretrained`.
      profile: `FIRST:LAST`, steps counted from 1, whose trace `jax.profiler` writes to the workdir's folder `profile`.
    """

    name: str = "experiment"
    seed: int = 0
    model: Model = field(default_factory=Model)
    task: Task = field(default_factory=Task)
    data: Data = field(default_factory=Data)
    plan: Plan = field(default_factory=Plan)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    distill: Distill = field(default_factory=Distill)
    mesh: Mesh = field(default_factory=Mesh)
    phases: tuple[Phase, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    baseline: dict[str, Any] = field(default_factory=dict)
    pretrain: "Experiment | None" = None
    profile: str | None = None


def load(source: str | pathlib.Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a Python config, of a run's `config.json`, or of a shipped config by its name.

    Args:
      source: path of a `.py` or `.json` file, or the name of a shipped config such as `quickstart`.
      overrides: `{"train.steps": 20}`; values may be text, as they come from a command line.

    Raises:
      UserError: nothing there, an unknown field, a wrong type, or values that contradict each other.
    """
    path = config_files.find(str(source))
    if path.suffix == ".json":
        exp = from_dict(config_files.read_json(path), str(path))
    else:
        # A dataclass does not check its arguments; reading the value back as data does.
        exp = from_dict(dataclasses.asdict(config_files.run_python(path, Experiment)), str(path))
        if exp.name == Experiment.name:
            exp = dataclasses.replace(exp, name=path.stem)
    exp = override(exp, overrides or {})
    validate(exp, str(source))
    return exp


def override(exp: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """`exp` with fields replaced; all mistakes are reported at once. Of `train.steps` and `train.epochs` the one
    given replaces the other."""
    mistakes = []
    for key, value in overrides.items():
        try:
            exp = typed.replace(exp, key.split("."), value, key)
        except UserError as error:
            mistakes.append(str(error).rstrip("."))
    if mistakes:
        raise UserError("", "; ".join(mistakes))
    for prefix in {key.rpartition("train.")[0] for key in overrides if key.rpartition(".")[0].endswith("train")}:
        given = [name for name in ("steps", "epochs") if overrides.get(f"{prefix}train.{name}") is not None]
        if len(given) == 1:
            other = {"steps": "epochs", "epochs": "steps"}[given[0]]
            exp = typed.replace(exp, f"{prefix}train.{other}".split("."), None, other)
    return exp


def to_dict(exp: Experiment) -> dict[str, Any]:
    """Plain data, as `config.json` holds it."""
    return json.loads(json.dumps(dataclasses.asdict(exp)))


def from_dict(data: Mapping[str, Any], where: str = "config") -> Experiment:
    """The experiment that `to_dict` wrote."""
    mistakes: list[str] = []
    exp = typed.build(Experiment, data, where, "", mistakes)
    if mistakes:
        raise UserError("", "; ".join(mistakes))
    return exp


def validate(exp: Experiment, where: str = "config") -> None:
    """Raise one UserError that names every value that cannot work; see `limits`."""
    wrong = limits.mistakes(exp)
    if wrong:
        raise UserError(where, "; ".join(wrong))
    if exp.pretrain is not None:
        validate(exp.pretrain, f"{where} (pretrain)")


def parse_options(cls: type, options: Mapping[str, Any], where: str):
    """An options mapping as the dataclass `cls` of a plug-in, with the checks that every config field gets."""
    mistakes: list[str] = []
    value = typed.build(cls, options, "", f"{where}.", mistakes)
    if mistakes:
        raise UserError("config", "; ".join(mistakes))
    return value
