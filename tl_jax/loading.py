# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a published checkpoint to the arrays of a network.

    checkpoint = open_checkpoint("path/to/folder-or-hub-id")      # reads config.json, and no weight
    model = abstract(checkpoint, add_head)
    loaded = load(checkpoint, model, add_head, fresh=("head/.*",), key=jax.random.key(0))
    loaded.params, loaded.receipt

The network is built abstractly, every tensor of the file is matched by name and shape, and only then is anything
read: straight to the devices, one tensor at a time.
"""

import dataclasses
import json
import pathlib
import re
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from flax import nnx

from tl_jax.config import Model, Plan
from tl_jax.core import chain, plugins
from tl_jax.core.chain import Backbone, Params
from tl_jax.core.errors import UserError, shorten
from tl_jax.core.task import AIDS
from tl_jax.nn import prompt
from tl_jax.nn.residual import set_drop_path
from tl_jax.parallel import sharding
from tl_jax.plan import adapters
from tl_jax.weights import hub, surgery
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
      drop_path: of the last block, see `nn.residual`; that of `config` where None.
    """

    folder: pathlib.Path | None
    published: dict[str, Any]
    family: types.ModuleType
    config: Any
    overridden: tuple[str, ...] = ()
    drop_path: float | None = None

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


def checkpoint_of(model: Model) -> Checkpoint:
    """What a config's `model` speaks of."""
    if model.pretrained is not None:
        found = open_checkpoint(model.pretrained, model.revision, model.config, model.family)
    else:
        found = from_config(dict(model.config), family=model.family)
    return dataclasses.replace(found, drop_path=model.drop_path)


def read_from(model: Model, checkpoint: Checkpoint) -> Checkpoint:
    """Where weights are read from: a random network keeps its tokenizer and preprocessor, which lie in the same folder,
    but reads nothing of it."""
    return dataclasses.replace(checkpoint, folder=None) if model.init == "random" else checkpoint


def build(checkpoint: Checkpoint, add_head: Callable[[Backbone, nnx.Rngs], None] | None, key: jax.Array) -> Backbone:
    """The network with all leaves initialised; use under `nnx.eval_shape` for an abstract one."""
    rngs = nnx.Rngs()
    rngs.params = _Keys(key, tag="params")
    model = checkpoint.family.Backbone(checkpoint.config, rngs=rngs)
    if checkpoint.drop_path is not None:
        set_drop_path(model, checkpoint.drop_path)
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
    """What appends a task's stages to a network, and gives it the adapters or the prompt of a plan, if it has any.

    Args:
      checkpoint: the one the network is built from, whose file says which kernels are one tensor there.
    """

    def add_head(model: Backbone, rngs: nnx.Rngs) -> None:
        for name, module in task.stages(model.width, rngs=rngs).items():
            model.add_stage(name, module)
        if plan is not None and plan.prompt is not None:
            prompt.install(model, plan.prompt, rngs)
        elif plan is not None and adapters.asked(plan):
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
    keep: Callable[[str, jax.Array], Any] | None = None,
) -> Loaded:
    """Fill the abstract `model` from the checkpoint's files and, where `fresh` says so, by initialisation.

    Args:
      model: from `abstract(checkpoint, add_head)`.
      fresh: patterns of paths to initialise.
      key: for initialisation; a typed key.
      dtype: of floating parameters; see `weights.fill`.
      mesh: to shard over; None for the default device.
      keep: what is kept of a leaf that is read; see `weights.fill`.
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
    arrays, receipt = fill(files, match, params, dtype, shardings, where, exact=stats, keep=keep)
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
    new = (path for path in params if adapters.is_adapter(path) or path.partition("/")[0] in AIDS)
    fresh = (*fresh, *map(re.escape, new))
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
