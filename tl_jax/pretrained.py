# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Published weights as a module, and back.

    pretrained = load_pretrained("path/to/folder-or-hub-id")
    outputs = pretrained({"input_ids": ids})        # {"last_hidden_state": …, "pooler_output": …}
    pretrained.save("out/folder")                   # the published layout again, byte-equal tensors

The network is built abstractly, every tensor of the file is matched by name and shape, and only then is anything
read: straight to the devices, one tensor at a time.
"""

import copy
import dataclasses
import functools
import json
import pathlib
import re
import types
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax import generation
from tl_jax.config import Plan
from tl_jax.core import chain, plugins
from tl_jax.core.chain import EVAL, Backbone, Params
from tl_jax.core.errors import UserError, shorten
from tl_jax.parallel import sharding
from tl_jax.plan import adapters
from tl_jax.weights import hub, surgery
from tl_jax.weights import save as saving
from tl_jax.weights.files import WeightFiles
from tl_jax.weights.fill import fill
from tl_jax.weights.match import Match, match_tensors, source_that_fits
from tl_jax.weights.receipt import Entry, Receipt
from tl_jax.weights.rules import Source

_REFUSED_KEYS = ("auto_map", "_target_", "custom_pipelines")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint before anything of it is read, or the plan of a network from scratch.

    Attributes:
      folder: where it is; None from scratch.
      published: the content of its `config.json`.
      family: the module that builds it.
      config: that family's Config.
      overridden: fields of `published` that were asked for over those of the file.
    """

    folder: pathlib.Path | None
    published: dict[str, Any]
    family: types.ModuleType
    config: Any
    overridden: tuple[str, ...] = ()

    def for_pool(self, pool: str) -> "Checkpoint":
        """Without the parts that a head with this pooling does not read."""
        return dataclasses.replace(self, config=self.config.without(pool))

    def fused(self) -> list[tuple[str, ...]]:
        """Paths of kernels that are one tensor in the file, or would be in the first layout of its family."""
        sources, indices = self.family.SOURCES, self.config.indices()
        name = next(iter(sources))
        if self.folder is not None:
            name = source_that_fits(sources, indices, WeightFiles(self.folder).tensors)
        rules = [rule for row in sources[name].rules for rule in row.expand(indices)]
        return [rule.params for rule in rules if len(rule.params) > 1 and rule.params[0].endswith("/kernel")]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Arrays on the devices, and how they came there.

    Attributes:
      params: all leaves by path.
      receipt: every tensor and parameter accounted for.
      source: the layout to save in.
      match: how the file's tensors were paired; None from scratch.
    """

    params: Params
    receipt: Receipt
    source: Source
    match: Match | None


def open_checkpoint(
    name: str,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    family: str | None = None,
) -> Checkpoint:
    """Find a checkpoint and read its `config.json`.

    Args:
      name, revision: see `weights.hub.resolve`.
      overrides: fields over those of `config.json`.
      family: the module that builds it, where `config.json` is not to decide.

    Raises:
      UserError: nothing there, no `config.json`, an architecture that no family builds, code asked to be run.
    """
    folder = hub.resolve(name, revision)
    path = (folder if folder.is_dir() else folder.parent) / "config.json"
    try:
        published = json.loads(path.read_text())
    except FileNotFoundError as error:
        if folder.is_dir():
            WeightFiles(folder)  # A folder of pickles is told so first.
        raise UserError(str(folder), "has no config.json", "give the folder as it was published") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"not JSON ({error})", "download it again") from error
    if not isinstance(published, dict):
        raise UserError(str(path), "is no object of fields", "download it again")
    refused = [key for key in _REFUSED_KEYS if key in published]
    if refused:
        raise UserError(str(path), f"asks to run code of its own ({shorten(refused)}), which is never done")
    checkpoint = from_config({**published, **(overrides or {})}, folder, str(path), family)
    return dataclasses.replace(checkpoint, overridden=tuple(overrides or ()))


def from_config(
    published: dict[str, Any],
    folder: pathlib.Path | None = None,
    where: str = "model.config",
    family: str | None = None,
) -> Checkpoint:
    """The family that builds what a `config.json` describes, with its Config."""
    module = _family(published, where, family)
    try:
        config = module.Config.from_published(published)
    except UserError as error:
        raise UserError(where, f"{error.where + ': ' if error.where != 'config.json' else ''}{error.what}") from error
    return Checkpoint(folder, published, module, config)


def build(checkpoint: Checkpoint, add_head: Callable[[Backbone, nnx.Rngs], None] | None, key: jax.Array) -> Backbone:
    """The network with all leaves initialised; use under `nnx.eval_shape` for an abstract one."""
    rngs = nnx.Rngs()
    rngs.params = _Keys(key, tag="params")
    model = checkpoint.family.Backbone(checkpoint.config, rngs=rngs)
    if add_head is not None:
        add_head(model, rngs)
    return model


class _Keys(nnx.RngStream):
    """The keys of `nnx.RngStream`, counted in Python.

    Counting on a traced array, Flax asks each count for its sharding, and the answer that it has none takes JAX the
    longer the more was traced before: for an abstract BERT-large 3.4 s, here 0.6 s.
    """

    def __init__(self, key: jax.Array, *, tag: str):
        super().__init__(key, tag=tag)
        self.drawn = 0

    def __call__(self) -> jax.Array:
        self.drawn += 1
        return jax.random.fold_in(self.key[...], self.drawn - 1)


def adder(task, plan: Plan | None = None, checkpoint: Checkpoint | None = None) -> Callable[[Backbone, nnx.Rngs], None]:
    """What appends a task's stages to a network, and gives its layers the adapters of a plan, if it has any.

    Args:
      checkpoint: the one the network is built from, whose file says which kernels are one tensor there.
    """

    def add_head(model: Backbone, rngs: nnx.Rngs) -> None:
        for name, module in task.stages(model.width, rngs=rngs).items():
            model.add_stage(name, module)
        if plan is not None and (plan.adapters or plan.preset == "lora"):
            fused = checkpoint.fused()
            adapters.install(model, adapters.choose(plan, model, fused), fused, rngs)

    return add_head


def abstract(checkpoint: Checkpoint, add_head=None) -> Backbone:
    """The network without arrays."""
    return nnx.eval_shape(lambda: build(checkpoint, add_head, jax.random.key(0)))


def load(
    checkpoint: Checkpoint,
    model: Backbone,
    add_head: Callable[[Backbone, nnx.Rngs], None] | None = None,
    *,
    fresh: Collection[str] = (),
    key: jax.Array | None = None,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Loaded:
    """Fill the abstract `model` from the checkpoint's files and, where `fresh` says so, by initialisation.

    Args:
      model: from `abstract(checkpoint, add_head)`.
      fresh: patterns of paths to initialise.
      key: for initialisation; a typed key.
      dtype: of floating parameters; see `weights.fill`.
      mesh: to shard over; None for the default device.
    """
    chains, params = chain.split(model)
    shardings = None
    if mesh is not None:
        shardings = sharding.param_shardings(params, mesh, checkpoint.family.SHARDING)
    if checkpoint.folder is None:
        arrays = initialise(checkpoint, add_head, tuple(params), key, shardings)
        return Loaded(arrays, Receipt(fresh=tuple(params)), next(iter(checkpoint.family.SOURCES.values())), None)
    where = str(checkpoint.folder)
    files, source, match = _matched(checkpoint, params, fresh)
    stats = {path for stages in chains.values() for stage in stages for path in stage.stats()}
    arrays, receipt = fill(files, match, params, dtype, shardings, where, exact=stats)
    arrays.update(initialise(checkpoint, add_head, match.fresh, key, shardings))
    arrays.update(adapters.settled(arrays, shardings))
    return Loaded({path: arrays[path] for path in params}, receipt, source, match)


def foresee(checkpoint: Checkpoint, model: Backbone, fresh: Collection[str]) -> Receipt:
    """The receipt that loading will give, from names and shapes alone; without casts and digest."""
    _, params = chain.split(model)
    if checkpoint.folder is None:
        return Receipt(fresh=tuple(params))
    files, _, match = _matched(checkpoint, params, fresh)
    entries = (Entry(names, paths, layout.name, files.tensors[names[0]].dtype) for names, paths, layout in match.filled)
    return Receipt(str(checkpoint.folder), "", tuple(entries), match.fresh, match.dropped, match.ignored, match.resized)


def _matched(checkpoint: Checkpoint, params, fresh: Collection[str]) -> tuple[WeightFiles, Source, Match]:
    indices, sources = checkpoint.config.indices(), checkpoint.family.SOURCES
    files = WeightFiles(checkpoint.folder)
    source = sources[source_that_fits(sources, indices, files.tensors)]
    resize = surgery.asked(getattr(checkpoint.family, "RESIZE", ()), checkpoint.overridden)
    where = str(checkpoint.folder)
    fresh = (*fresh, *(re.escape(path) for path in params if adapters.is_adapter(path)))
    return files, source, match_tensors(source, indices, files.tensors, params, fresh, where, resize)


def initialise(checkpoint, add_head, wanted: tuple[str, ...], key, shardings=None) -> Params:
    """Only the leaves at these paths, with the values a full initialisation by `key` would give them."""
    if not wanted:
        return {}

    # One program for the whole network of which the compiler keeps what the wanted leaves need.
    def init(key):
        _, params = chain.split(build(checkpoint, add_head, key))
        return {path: params[path] for path in wanted}

    out = None if shardings is None else {path: shardings[path] for path in wanted}
    # It runs once: compiling it well would take ten times as long as running it.
    quick = {"xla_backend_optimization_level": 0}
    return jax.jit(init, out_shardings=out, compiler_options=quick)(jax.random.key(0) if key is None else key)


class Pretrained:
    """A network with its weights, its receipt and its way back to files.

    Attributes:
      model: the NNX module.
      receipt: every tensor accounted for.
      config: the content of `config.json`.
      classes: names of the head's classes; empty without a head.
      difference: of its outputs from those before merging, the largest, if `merge` was given a batch.
    """

    difference: float | None = None

    def __init__(
        self,
        model: Backbone,
        checkpoint: Checkpoint,
        loaded: Loaded,
        config: dict[str, Any],
        classes: tuple[str, ...] = (),
    ):
        self.receipt, self.config, self.classes = loaded.receipt, config, classes
        self._checkpoint, self._source, self._match = checkpoint, loaded.source, loaded.match
        # An array that is still the loaded one is written as the file's own bytes, whatever it was cast to.
        self._loaded = {path: weakref.ref(leaf) for path, leaf in loaded.params.items()}
        self._take(model)

    def _take(self, model: Backbone) -> None:
        self.model, self._chains = model, chain.split(model)[0]
        chains = self._chains
        self._forward = jax.jit(lambda params, batch: chain.run_chains(model, chains, params, batch, _eval)[0])

    def around(self, model: Backbone) -> "Pretrained":
        """Another form of this network, with the same files and receipt."""
        other = copy.copy(self)
        other.__dict__.pop("_writer", None)
        other._take(model)
        return other

    @property
    def params(self) -> Params:
        """All leaves by path, as the module holds them now."""
        return chain.split(self.model)[1]

    def heads(self) -> list[str]:
        """Published classes with the head that this network has, which a run of tl_jax left in its config."""
        ours = self.config.get("tl_jax", {})
        family, found = self._checkpoint.family, []
        for name, (task, options) in family.HEADS.items():
            theirs = {"pool": family.POOLS[0], "bias": True, **options}
            same = all(ours.get("options", {}).get(option, value) == value for option, value in theirs.items())
            # Names in lower case are timm's networks, no classes.
            if task == ours.get("task") and same and name.isidentifier() and not name.islower():
                found.append(name)
        # A family of several kinds has a class for each.
        kind = str(self.config.get("model_type", "")).replace("-", "").replace("_", "")
        return sorted(found, key=lambda name: not name.lower().startswith(f"{kind}for"))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Named outputs for a dict of arrays, see the family's `begin`; other fields of the dict are left alone."""
        inputs = {name: jnp.asarray(value) for name, value in self._inputs(batch).items()}
        return self._forward(self.params, inputs)

    def generate(
        self,
        batch: Mapping[str, Any],
        *,
        max_new_tokens: int,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | None = None,
        eos_token_id: int | Collection[int] | None = None,
        pad_token_id: int | None = None,
        decoder_start_token_id: int | None = None,
        suppress_tokens: Collection[int] | None = None,
        begin_suppress_tokens: Collection[int] | None = None,
    ) -> jax.Array:
        """The likeliest words after a prompt, by greedy or beam search, never drawn; as `transformers` finds them.

        What is not given is as `generation_config.json` and `config.json` have it, see `decoding.Options` for meanings;
        `()` for no words of a kind. Lengths of prompts and `max_new_tokens` that are new are compiled anew.

        Args:
          batch: as for a call. The prompt is `input_ids` int[B, P] or, for a network with an encoder,
            `decoder_input_ids`, where Whisper's language and task stand, and without it `decoder_start_token_id`.
            Prompts of different lengths are padded on the right, with a mask.

        Returns:
          int32[B, N]: the new words alone, up to and with the one that ends a text, then `pad_token_id`.

        Raises:
          UserError: no layer that predicts words, no prompt, options that are not built, too many words.
        """
        given = dict(locals())
        options = {name: value for name, value in given.items() if name not in ("self", "batch") and value is not None}
        published = {**generation.defaults(self.config, self._checkpoint.folder), **options}
        batch = generation.prompted(self._inputs(batch), self._writer.reads, published)
        return self._writer(self.params, batch, generation.options_from(published, max_new_tokens))

    @functools.cached_property
    def _writer(self) -> generation.Writer:
        return generation.writer(self.model, self._chains, self._checkpoint.family.INPUTS)

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        missing = self._checkpoint.family.INPUTS[0]
        if missing not in batch:
            raise UserError("batch", f"has no {missing}, there are {shorten(sorted(batch))}")
        return {name: batch[name] for name in self._checkpoint.family.INPUTS if name in batch}

    def save(self, folder: str | pathlib.Path) -> None:
        """Write the published layout: `config.json`, weights under their published names, tokenizer and preprocessor
        files. Tensors that did not change are copied from the source files. With several processes all call it, and
        process 0 writes.

        Raises:
          UserError: the folder exists and is not empty, or the network has adapters, which no published layout has.
        """
        if adapters.installed(self.model):
            raise UserError(
                str(folder),
                "a published layout has no place for adapters",
                "save what merge() gives, or the adapters alone with tl_jax.save_adapter (export --format=peft)",
            )
        params = self.params
        base = None if self._checkpoint.folder is None else (self._checkpoint.folder, self._match)
        whole = {path: sharding.gathered(leaf) for path, leaf in params.items()}
        if jax.process_index() > 0:
            return
        saving.save(
            pathlib.Path(folder),
            whole,
            self.changed(),
            self.config,
            *self.layout(),
            base,
        )

    def changed(self) -> set[str]:
        """Paths that do not hold what the base's files do."""
        changed = {path for path, leaf in self.params.items() if self._loaded.get(path, _gone)() is not leaf}
        fresh = set() if self._match is None else {*self._match.fresh, *(row[0] for row in self._match.resized)}
        return changed | fresh

    def layout(self) -> tuple[Source, list[dict[str, int]]]:
        """The layout that it is saved in, and the values of its placeholders."""
        return self._source, self._checkpoint.config.indices()

    def merge(self, batch: Mapping[str, Any] | None = None) -> "Pretrained":
        """With its adapters folded into the kernels, float32, and gone; this network keeps them.

        Args:
          batch: to compare on, as for a call; `difference` then is the largest between an output before and after.

        Raises:
          UserError: adapters that no kernel can take in.
        """
        model = nnx.clone(self.model)
        adapters.merge(model)
        merged = self.around(model)
        if batch is not None:
            merged.difference = adapters.largest_difference(self(batch), merged(batch))
        return merged


def load_pretrained(
    source: str | pathlib.Path,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    revision: str | None = None,
) -> Pretrained:
    """Load published weights, with the head that the checkpoint carries, if any.

    Args:
      source: a folder with `config.json` and `*.safetensors`, a hub id, or `package:NAME/FOLDER`.
      mesh: devices to shard the parameters over, with axes `data`, `fsdp`, `tensor`; None for the default device.
      dtype: `float32` or `bfloat16`; None keeps the file's (float16 is widened to float32).
      revision: branch, tag or commit of a hub id.

    Raises:
      UserError: nothing there, or weights and `config.json` that do not fit each other.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise UserError("dtype", f"is {dtype!r}, must be float32, bfloat16 or None")
    checkpoint = open_checkpoint(str(source), revision)
    published = published_head(checkpoint)
    add_head = None
    if published is not None:
        task, _ = published
        checkpoint = checkpoint.for_pool(task.pool)
        add_head = adder(task)
    elif not _has_pooler(checkpoint):
        checkpoint = checkpoint.for_pool("")
    model = abstract(checkpoint, add_head)
    loaded = load(checkpoint, model, add_head, dtype=dtype, mesh=mesh)
    chain.merge_into(model, loaded.params)
    return Pretrained(model, checkpoint, loaded, checkpoint.published, () if published is None else task.classes)


def published_head(checkpoint: Checkpoint):
    """(task, options) of the head that the checkpoint's `config.json` names, or None."""
    published = checkpoint.published
    ours = published.get("tl_jax", {})
    kind = (published.get("architectures") or [published.get("architecture") or ""])[0]
    name, options = ours.get("task"), ours.get("options", {})
    if name is not None and name not in plugins.names("tl_jax.tasks"):
        # A file that was downloaded must not name code to import.
        raise UserError(
            "config.json", f"names the task {name!r}, which is not one of tl_jax", "load it with its own code"
        )
    if name is None:
        known = [head for head in checkpoint.family.HEADS if kind.startswith(head)]
        if not known or published.get("num_classes") == 0:
            return None
        # `DeiTForImageClassificationWithTeacher` begins as a class with another head does.
        name, options = checkpoint.family.HEADS[max(known, key=len)]
        if published.get("problem_type") == "multi_label_classification":
            options = {**options, "multi_label": True}
    module = plugins.find("tl_jax.tasks", name)
    classes = module.published_classes(published, checkpoint.folder)
    return module.Task(module.Config(**options), classes, checkpoint.family.POOLS), options


def _has_pooler(checkpoint: Checkpoint) -> bool:
    rules = [rule for source in checkpoint.family.SOURCES.values() for rule in source.rules]
    wanted = {name for rule in rules for name, path in _pairs(rule) if path.startswith("pooler/")}
    files = WeightFiles(checkpoint.folder)
    known = [source.canonical(name, wanted) for source in checkpoint.family.SOURCES.values() for name in files.tensors]
    return bool(wanted.intersection(known))


def _pairs(rule):
    tensors, params = (side if isinstance(side, tuple) else (side,) for side in (rule.tensors, rule.params))
    return [(name, path) for name in tensors for path in params]


def _family(published: Mapping[str, Any], where: str, name: str | None) -> types.ModuleType:
    if name is not None:
        return plugins.find("tl_jax.models", name, "model.family")
    kind = str(published.get("model_type") or published.get("architecture") or "")
    modules = [plugins.find("tl_jax.models", name) for name in plugins.names("tl_jax.models")]
    # A `model_type` is exact (`vit_mae` is no ViT); an architecture in words begins with the family's, and the longest
    # such beginning counts (`timm` calls a ViT `deit_base_patch16_224`).
    fits = kind.__eq__ if "model_type" in published else kind.startswith
    found = [(len(known), module) for module in modules for known in module.MODEL_TYPES if fits(known)]
    if found:
        return max(found, key=lambda pair: pair[0])[1]
    known = sorted(kind for module in modules for kind in module.MODEL_TYPES)
    raise UserError(where, f"no family builds {kind!r}; there are {', '.join(known)}")


def _eval(_: str):
    return EVAL


def _gone():
    return None
