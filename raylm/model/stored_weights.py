"""The weights of a folder of safetensors files, read a tensor at a time, from local disk or an object store.

A folder whose tensors lie under other names than the model's, or in other pieces, is loaded whole by transformers,
which knows how to convert it, in one process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from raylm.errors import ConfigError, RaylmError
from raylm.model.first_weights import FirstWeights, Unit
from raylm.storage import StoragePath

# What transformers raises over a folder that is missing, broken or of another model.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
FOLDER_HINT = "give a folder with config.json and *.safetensors, as `save_pretrained` or `raylm export` writes"

# By their names in the file's format.
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HEADER_LIMIT = 100_000_000  # the format's own


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor's bytes are."""

    file: StoragePath
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int

    def read(self) -> Tensor:
        """Its values, in their own type."""
        if not self.length:
            return torch.empty(self.shape)
        data = bytearray(self.file.read_range(self.start, self.length))
        return torch.frombuffer(data, dtype=_TYPES[self.dtype]).view(self.shape)


@dataclass(frozen=True)
class Stored:
    """A model's tensors, each found under its name."""

    tensors: Mapping[str, StoredTensor]
    anywhere: bool = True

    def of(self, unit: Unit) -> Mapping[str, Tensor]:
        """The unit's values, read now."""
        return {name: self.tensors[name].read() for name in unit.parameters}


@dataclass(frozen=True)
class LoadedWhole:
    """A folder that only transformers can read; whoever asks for a unit holds all of it."""

    folder: StoragePath
    model: nn.Module
    key: str
    anywhere: bool = field(default=False, init=False)

    def of(self, unit: Unit) -> Mapping[str, Tensor]:
        """The unit's values out of the whole."""
        return {name: self._state[name] for name in unit.parameters}

    @cached_property
    def _state(self) -> Mapping[str, Tensor]:
        model: Any = self.model
        local = self.folder.local_path()
        if local is None:
            raise ConfigError(
                f"{self.key}={self.folder.url!r}: its tensors have other names than the model's, and only a local "
                "folder can be converted",
                hint="copy the folder to a path that every node has",
            )
        try:
            loaded, report = type(model).from_pretrained(
                local,
                config=model.config,
                attn_implementation="eager",
                dtype="auto",
                local_files_only=True,
                output_loading_info=True,
                use_safetensors=True,  # never a pickle
            )
        except LOADING_ERRORS as error:
            raise ConfigError(f"{self.key}={str(local)!r} cannot be loaded: {error}", hint=FOLDER_HINT) from error
        if missing := sorted(report["missing_keys"]):
            raise _lacks(self.key, self.folder, missing)
        state: dict[str, Tensor] = loaded.state_dict()
        return state


def stored_weights(folder: StoragePath, model: Any, *, key: str) -> FirstWeights:
    """Where a model's first weights come from when they are in this folder. key: the setting that names it.

    ConfigError when a tensor is missing or has another shape.
    """
    held = tensors_in(folder, key=key)
    wanted = {name: parameter for name, parameter in model.named_parameters() if parameter.is_meta}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found: dict[str, StoredTensor] = {}
    for name in wanted:
        for other in (name, name.removeprefix(prefix), prefix + name):
            if other in held:
                found[name] = held[other]
                break
    for name, other in (getattr(model, "_tied_weights_keys", None) or {}).items():
        if name in wanted and name not in found and other in found and _says_tied(folder):
            found[name] = found[other]  # tied in the folder, a tensor of its own from here on
    if missing := sorted(wanted.keys() - found.keys()):
        if held.keys() <= {other for name in wanted for other in (name, name.removeprefix(prefix), prefix + name)}:
            raise _lacks(key, folder, missing)
        return LoadedWhole(folder, model, key)
    for name, tensor in found.items():
        if tensor.shape != tuple(wanted[name].shape):
            raise ConfigError(
                f"{key}={folder.url!r} cannot be loaded: {name} is {_by(tensor.shape)} in the file and "
                f"{_by(wanted[name].shape)} by its config.json",
                hint="the folder's config.json is another model's; restore it",
            )
        if tensor.dtype not in _TYPES:
            raise ConfigError(
                f"{key}={folder.url!r} cannot be loaded: {name} is stored as {tensor.dtype}, which is quantised",
                hint="training needs the model's weights in bf16, fp16 or fp32; name a folder that is not quantised",
            )
    return Stored(found)


def tensors_in(folder: StoragePath, *, key: str) -> dict[str, StoredTensor]:
    """Every tensor of a folder's safetensors files, by name, read from the files' heads."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.exists():
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        return {name: tensor for file in names for name, tensor in _head(folder / file).items()}
    except (RaylmError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{key}={folder.url!r} cannot be loaded: {error}", hint=FOLDER_HINT) from error


def own_head(folder: StoragePath, model: Any, *, key: str) -> bool:
    """Whether tensors that the config says are tied are two different ones in the files."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if not tied:
        return False
    held = tensors_in(folder, key=key)
    for name, other in tied.items():
        here, there = held.get(name), held.get(other)
        if here is None or there is None:
            continue
        if here.dtype in _TYPES and (here.shape != there.shape or not torch.equal(here.read(), there.read())):
            return True
    return False


def _head(file: StoragePath) -> dict[str, StoredTensor]:
    """A file's tensors, by its head: its length in eight bytes, then JSON."""
    length = int.from_bytes(file.read_range(0, 8), "little")
    if length > min(_HEADER_LIMIT, file.size()):
        raise ValueError(f"{file.url} is no safetensors file")
    entries: dict[str, Any] = json.loads(file.read_range(8, length))
    found: dict[str, StoredTensor] = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        shape = tuple(int(side) for side in entry["shape"])
        kind = _TYPES.get(entry["dtype"])
        if kind is not None and end - begin != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{file.url}: {name} has {end - begin} bytes for {_by(shape)} of {entry['dtype']}")
        found[name] = StoredTensor(file, str(entry["dtype"]), shape, 8 + length + int(begin), int(end) - int(begin))
    if found and 8 + length + max(entry.start - 8 - length + entry.length for entry in found.values()) > file.size():
        raise ValueError(f"{file.url} is cut short: its head names more bytes than it has")
    return found


def _says_tied(folder: StoragePath) -> bool:
    config: Any = json.loads((folder / "config.json").read_bytes())
    return bool(config.get("tie_word_embeddings", True))


def _lacks(key: str, folder: StoragePath, missing: list[str]) -> ConfigError:
    return ConfigError(
        f"{key}={folder.url!r} lacks {len(missing)} of the model's tensors, e.g. {missing[0]}", hint=FOLDER_HINT
    )


def _by(shape: Any) -> str:
    return "x".join(map(str, shape)) or "a number"
