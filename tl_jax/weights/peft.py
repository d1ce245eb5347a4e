# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters, or a prompt, in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

    write(folder, parts, params, changed, names, base="bert-base-uncased", digest="3f…")
    parts, rows, rest = read(folder, names, digest="3f…")

PEFT names an adapter by the module of `transformers` that it belongs to, and the key map knows that as the name of the
kernel's tensor. Where several kernels here are one tensor there, they have one first layer, and their second layers lie
one after the other. Knows names and shapes, no networks.
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from tl_jax.config import Adapter
from tl_jax.core.errors import UserError, shorten
from tl_jax.weights.rules import Rule, Source

_PREFIX, _PROMPT_PREFIX = "base_model.model.", "base_model."
_PROMPT = "prompt_embeddings"
# Ends of the names of modules that PEFT keeps whole beside a prompt, by task type.
_KEPT = {"SEQ_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
_DIGEST = "base_sha256"
_LEAF = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_[AB]|lora_magnitude_vector|ia3_l)")
# What changes the result in a way that is not built here, with the values that do not.
_PLAIN = {
    "bias": ("none",),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    # Others take a part out of the base's own kernels first.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
    "init_ia3_weights": (True, False),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """The adapter of one kernel.

    Attributes:
      spec: what it is.
      arrays: float32 by name: `a` [..., inputs, rank], `b` [rank, outputs] and `magnitude` [outputs], or `scale`.
    """

    spec: Adapter
    arrays: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The rows in front of every text.

    Attributes:
      rows: float32[P, D].
      task_type: what PEFT calls the kind of head; without it, it leaves the rows out.
      layers, heads: of the network, which PEFT finds by itself in most, and asks for in the others.
    """

    rows: np.ndarray
    task_type: str
    layers: int
    heads: int


class Names:
    """The rules of a layout under the names that PEFT uses.

    Args:
      bare: the files that PEFT is to find are those of a network without a head, whose names lack the prefix.
    """

    def __init__(self, source: Source, indices, bare: bool = False):
        self.source, self.rules = source, [rule for row in source.rules for rule in row.expand(indices)]
        self.bare = bare

    def of(self, tensor: str) -> str:
        """A tensor of the layout as `transformers` calls the parameter."""
        for pattern, replacement in self.source.modules:
            tensor = re.sub(pattern, replacement, tensor)
        return tensor.removeprefix(self.source.prefix) if self.bare else tensor

    def found(self, name: str) -> tuple[Rule, str] | None:
        """The rule and tensor that a parameter of a file means, by the published name too."""
        if not hasattr(self, "_by_name"):
            pairs = [(rule, tensor) for rule in self.rules for tensor in rule.tensors]
            self._by_name = {
                form.removeprefix(prefix): pair
                for prefix in (self.source.prefix, "")
                for pair in pairs
                for form in (pair[1], Names(self.source, ()).of(pair[1]))
            }
        return self._by_name.get(name)


def write(
    folder: pathlib.Path,
    parts: Mapping[str, Part],
    params: Mapping[str, np.ndarray],
    changed: set[str],
    names: Names,
    base: str,
    digest: str,
    prompt: Prompt | None = None,
) -> None:
    """Write both files, or nothing.

    Args:
      parts: by the kernel's path.
      params: all other parameters; the modules that hold one of `changed` are saved whole.
      base: what the adapter belongs to, `digest` the sha256 of its weights.
      prompt: in place of `parts`.

    Raises:
      UserError: kinds that PEFT cannot mix or does not have, a tensor adapted in part, a folder that is not empty.
    """
    specs = {part.spec for part in parts.values()}
    kinds = {(spec.kind, spec.use_rslora) for spec in specs}
    if prompt is None and (len(kinds) != 1 or "bottleneck" in {kind for kind, _ in kinds}):
        found = shorten(sorted({spec.kind + " with use_rslora" * spec.use_rslora for spec in specs})) or "none"
        raise UserError(str(folder), f"PEFT's files hold one of lora, dora and ia3, not {found}", "use one kind only")
    rates = sorted({part.spec.dropout for path, part in parts.items() if not path.endswith("/embedding")})
    if len(rates) > 1:
        found = ", ".join(map(str, rates))
        raise UserError(str(folder), f"PEFT's files hold one dropout, not {found}", "use one for all adapters")
    prefix = _PREFIX if prompt is None else _PROMPT_PREFIX
    tensors: dict[str, np.ndarray] = {} if prompt is None else {_PROMPT: prompt.rows}
    by_module: dict[str, Adapter] = {}
    conv1d, mistakes = False, []
    for rule in names.rules:
        adapted = [path for path in rule.params if path in parts]
        if not adapted:
            continue
        ours = [parts[path] for path in adapted]
        module = names.of(rule.tensors[0]).removesuffix(".weight")
        form = _form(rule, params[adapted[0]].ndim)
        if len(ours) < len(rule.params) or not _alike(ours):
            mistakes.append(f"PEFT adapts {module} as a whole, so {shorten(list(rule.params))} must be adapted alike")
        elif form is None:
            mistakes.append(f"{module} ({rule.layout.name}) is no layer that PEFT adapts")
        else:
            conv1d, by_module[module] = conv1d or form == "Conv1D", ours[0].spec
            tensors |= {f"{prefix}{module}.{name}": value for name, value in _to_torch(ours, form).items()}
    moved = [tensor for rule in names.rules for tensor in rule.tensors if not changed.isdisjoint(rule.params)]
    whole = sorted({names.of(tensor).rpartition(".")[0] for tensor in moved})
    if prompt is not None:
        whole = _kept(whole, [names.of(tensor) for rule in names.rules for tensor in rule.tensors], prompt.task_type)
    for rule in names.rules:
        called = [names.of(tensor) for tensor in rule.tensors]
        if set(rule.params) <= set(params) and any(f"{name}.".startswith(f"{m}.") for name in called for m in whole):
            values = rule.layout.save(tuple(params[path] for path in rule.params))
            tensors |= {f"{prefix}{name}": value for name, value in zip(called, values)}
            mistakes += [f"{path} is both adapted and changed" for path in rule.params if path in parts]
    if mistakes:
        raise UserError(str(folder), "; ".join(mistakes))
    config = {"base_model_name_or_path": base, "modules_to_save": whole or None, "inference_mode": True}
    if prompt is None:
        config |= {"fan_in_fan_out": conv1d, "target_modules": sorted(by_module), **_config(by_module, *rates)}
    else:
        count, width = prompt.rows.shape
        config |= {"peft_type": "PROMPT_TUNING", "task_type": prompt.task_type, "prompt_tuning_init": "RANDOM"}
        config |= {"num_virtual_tokens": count, "token_dim": width, "num_transformer_submodules": 1}
        config |= {"num_layers": prompt.layers, "num_attention_heads": prompt.heads}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(str(folder), "is not empty", "give a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        packed = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(packed, folder / "adapter_model.safetensors", metadata={"format": "pt", _DIGEST: digest})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(str(folder), f"could not be written ({error})", "see that there is room") from error


def read(
    folder: pathlib.Path, names: Names, digest: str
) -> tuple[dict[str, Part], np.ndarray | None, dict[str, np.ndarray]]:
    """What `write` or PEFT wrote: adapters by the kernel's path, or a prompt's rows, and other parameters by path.

    Args:
      digest: of the weights that the adapter is to change; compared where the file says whose it is.

    Raises:
      UserError: nothing there, another base, tensors without a place, or a kind of adapter that is not built.
    """
    config, tensors, metadata = _files(folder)
    wrong = [f"{name}={config[name]!r}" for name, plain in _PLAIN.items() if config.get(name, plain[0]) not in plain]
    if config.get("peft_type") not in ("LORA", "IA3", "PROMPT_TUNING"):
        wrong = [f"peft_type={config.get('peft_type')!r}"]
    if wrong:
        raise UserError(str(folder), f"asks for what is not built: {shorten(wrong)}")
    if metadata.get(_DIGEST, digest) != digest:
        told = f"belongs to other weights (sha256 {metadata[_DIGEST][:12]}, these are {digest[:12]})"
        raise UserError(str(folder), told, f"load {config.get('base_model_name_or_path')} instead")
    layers: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    rest: dict[tuple[str, ...], dict[str, np.ndarray]] = collections.defaultdict(dict)
    parts, params, unknown, rows, prefix = {}, {}, [], None, _PREFIX
    if config["peft_type"] == "PROMPT_TUNING":
        rows, prefix = _rows(folder, config, tensors), _PROMPT_PREFIX
    for name, tensor in tensors.items():
        name = name.removeprefix(prefix)
        match = _LEAF.fullmatch(name)
        found = names.found(f"{match[1]}.weight" if match else name)
        if found is None:
            unknown.append(f"{name} {list(tensor.shape)}")
        elif match:
            layers[match[1]][match[2]] = tensor
        else:
            rest[found[0].tensors][found[1]] = tensor
    for module, found in layers.items():
        rule, _ = names.found(f"{module}.weight")
        ours = _from_torch(module, found, rule, config)
        if ours is None:
            unknown.append(f"{module} ({rule.layout.name}) with {shorten(sorted(found))}")
        parts |= dict(zip(rule.params, ours or ()))
    by_tensors = {rule.tensors: rule for rule in names.rules}
    for tensors_, values in rest.items():
        rule = by_tensors[tensors_]
        if len(values) < len(tensors_):
            unknown += [f"{tensor} is missing" for tensor in tensors_ if tensor not in values]
        else:
            params |= dict(zip(rule.params, rule.layout.load(tuple(values[tensor] for tensor in tensors_))))
    if unknown:
        raise UserError(str(folder), f"{len(unknown)} tensors found no parameter: {shorten(unknown)}")
    return parts, rows, params


def _kept(whole: list[str], parameters: list[str], task_type: str) -> list[str]:
    """The modules to save beside a prompt: those of the head, as PEFT finds them, and what of `whole` is not inside."""
    heads = set()
    for name in parameters:
        parts = name.split(".")[:-1]
        modules = (".".join(parts[: n + 1]) for n in range(len(parts)))
        heads.add(next((module for module in modules if module.endswith(_KEPT.get(task_type, ()))), None))
    heads.discard(None)
    return sorted({*heads, *(module for module in whole if not f"{module}.".startswith(tuple(f"{h}." for h in heads)))})


def _rows(folder: pathlib.Path, config: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The prompt's, taken out of `tensors`."""
    rows, told = tensors.pop(_PROMPT, None), [config.get("num_virtual_tokens"), config.get("token_dim")]
    if rows is None or list(rows.shape) != told:
        found = "nothing" if rows is None else list(rows.shape)
        raise UserError(str(folder), f"says {told} of {_PROMPT}, and holds {found}", "write or download it again")
    return rows


def _files(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    file = folder / "adapter_model.safetensors"
    for needed in (folder / "adapter_config.json", file):
        if not needed.is_file():
            raise UserError(str(folder), f"has no {needed.name}", "give a folder that PEFT or save_adapter wrote")
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
        tensors = {name: np.asarray(tensor, np.float32) for name, tensor in load_file(file).items()}
    except (ValueError, SafetensorError, AttributeError) as error:
        raise UserError(str(folder), f"cannot be read ({error})", "write or download it again") from error
    bad = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if bad:
        raise UserError(str(folder), f"NaN or infinity in {shorten(bad)}", "write or download it again")
    return config, tensors, metadata


def _form(rule: Rule, ndim: int) -> str | None:
    """`Embedding`, `Conv`, `Linear` or `Conv1D` (as `transformers` calls a linear layer that lies as here), found by
    trying the rule's layout out on kernels of `ndim` dimensions; None for any other."""
    if len(rule.tensors) > 1 or not rule.tensors[0].endswith(".weight"):
        return None
    if rule.params[0].endswith("/embedding"):
        return "Embedding"
    window = range(4, 2 + ndim)
    whole = np.arange(math.prod((*window, 2, 3)) * len(rule.params)).reshape(*window, 2, -1)
    (saved,) = rule.layout.save(tuple(np.split(whole, len(rule.params), axis=-1)))
    if np.array_equal(saved, _turned(whole)):
        return "Conv" if window else "Linear"
    return "Conv1D" if not window and np.array_equal(saved, whole) else None


def _turned(kernel: np.ndarray) -> np.ndarray:
    """[..., inputs, outputs] -> [outputs, inputs, ...]."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _alike(parts: list[Part]) -> bool:
    """Whether they are the parts of one adapter: one first layer, and one scale of inputs where there is one."""
    first = parts[0]
    shared = "scale" if first.spec.feedforward else "a"
    return all(
        part.spec == first.spec and np.array_equal(part.arrays.get(shared), first.arrays.get(shared)) for part in parts
    )


def _to_torch(parts: list[Part], form: str) -> dict[str, np.ndarray]:
    """PEFT's tensors of one module."""
    spec, arrays = parts[0].spec, parts[0].arrays

    def joined(name):
        return np.concatenate([part.arrays[name] for part in parts], axis=-1)

    if spec.kind == "ia3":
        scale = arrays["scale"] if spec.feedforward else joined("scale")
        shape = (1, -1, 1, 1) if form == "Conv" else (1, -1) if spec.feedforward else (-1, 1)
        return {"ia3_l": scale.reshape(shape)}
    if form == "Embedding":
        return {"lora_embedding_A": arrays["a"].T, "lora_embedding_B": joined("b").T}
    window = (1,) * (arrays["a"].ndim - 2)
    b = joined("b").T
    found = {"lora_A.weight": _turned(arrays["a"]), "lora_B.weight": b.reshape(*b.shape, *window)}
    if spec.kind == "dora":
        magnitude = joined("magnitude")
        found["lora_magnitude_vector"] = magnitude.reshape(1, -1, *window) if window else magnitude
    return found


def _from_torch(module: str, tensors: Mapping[str, np.ndarray], rule: Rule, config) -> list[Part] | None:
    """The inverse, a part for each of the rule's kernels; None where the tensors are not those of one adapter."""
    count = len(rule.params)
    if set(tensors) == {"ia3_l"}:
        scale = tensors["ia3_l"]
        ahead = config.get("feedforward_modules") or []
        found = re.fullmatch(ahead, module) if isinstance(ahead, str) else [n for n in ahead if module.endswith(n)]
        feedforward = bool(found)
        if _form(rule, scale.ndim) is None:
            return None
        spec, scale = Adapter("ia3", feedforward=feedforward), scale.reshape(-1)
        return [Part(spec, {"scale": x}) for x in ([scale] * count if feedforward else np.split(scale, count))]
    if set(tensors) == {"lora_embedding_A", "lora_embedding_B"}:
        a, b = tensors["lora_embedding_A"].T, tensors["lora_embedding_B"].T
    elif {"lora_A.weight", "lora_B.weight"} <= set(tensors):
        a = np.moveaxis(tensors["lora_A.weight"], (0, 1), (-1, -2))
        b = tensors["lora_B.weight"].reshape(-1, a.shape[-1]).T
    else:
        return None
    if _form(rule, a.ndim) is None or bool(config.get("use_dora")) != ("lora_magnitude_vector" in tensors):
        return None
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    kind, rslora = "dora" if config.get("use_dora") else "lora", bool(config.get("use_rslora"))
    # PEFT drops nothing before a table.
    rate = 0.0 if rule.params[0].endswith("/embedding") else float(config.get("lora_dropout") or 0.0)
    spec = Adapter(kind, rank=a.shape[-1], alpha=float(alpha), use_rslora=rslora, dropout=rate)
    pieces = [{"a": a, "b": part} for part in np.split(b, count, axis=-1)]
    if kind == "dora":
        magnitudes = np.split(tensors["lora_magnitude_vector"].reshape(-1), count)
        pieces = [{**piece, "magnitude": part} for piece, part in zip(pieces, magnitudes)]
    return [Part(spec, piece) for piece in pieces]


def _config(by_module: Mapping[str, Adapter], dropout: float = 0.0) -> dict[str, Any]:
    """What `adapter_config.json` says of the adapters, the commonest rank and alpha for all but those named."""
    first = next(iter(by_module.values()))
    if first.kind == "ia3":
        ahead = sorted(module for module, spec in by_module.items() if spec.feedforward)
        return {"peft_type": "IA3", "feedforward_modules": ahead}

    def common(values: dict[str, Any]):
        most = collections.Counter(values.values()).most_common(1)[0][0]
        return most, {module: value for module, value in values.items() if value != most}

    rank, ranks = common({module: spec.rank for module, spec in by_module.items()})
    alpha, alphas = common({m: spec.rank if spec.alpha is None else spec.alpha for m, spec in by_module.items()})
    return {
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "lora_alpha": alpha,
        "alpha_pattern": alphas,
        "lora_dropout": dropout,
        "bias": "none",
        "use_dora": first.kind == "dora",
        "use_rslora": first.use_rslora,
    }


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    found = (value for name, value in (patterns or {}).items() if re.match(rf"(.*\.)?({name})$", module))
    return next(found, default)
