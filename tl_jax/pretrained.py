# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Published weights as a module, and back.

    pretrained = load_pretrained("path/to/folder-or-hub-id")
    outputs = pretrained({"input_ids": ids})        # {"last_hidden_state": …, "pooler_output": …}
    pretrained.save("out/folder")                   # the published layout again, byte-equal tensors

The network is a plain NNX module; `loading` is what fills it.
"""

import copy
import functools
import pathlib
import weakref
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tl_jax import generation
from tl_jax.core import chain, plugins
from tl_jax.core.chain import EVAL, Backbone, Params
from tl_jax.core.errors import UserError, shorten
from tl_jax.loading import Checkpoint, Loaded, abstract, adder, load, open_checkpoint
from tl_jax.parallel import sharding
from tl_jax.plan import adapters
from tl_jax.weights import save as saving
from tl_jax.weights.files import WeightFiles
from tl_jax.weights.rules import Source


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
                "a published layout has no place for adapters or a prompt",
                "save what merge() gives, or them alone with tl_jax.save_adapter (export --format=peft)",
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
        """With its adapters folded into the kernels, float32, and gone; this network keeps them. The kernels are the
        file's, also where a run had quantised them.

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


def _eval(_: str):
    return EVAL


def _gone():
    return None
