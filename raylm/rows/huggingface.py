"""Folders as Hugging Face's datasets library writes them and its hub holds them: which files are a split.

Known are what save_to_disk writes (a dataset, or several splits), the data files that a hub's README.md names for each
configuration, and, without those, names that tell the split: data/train-00000-of-00010.parquet, test.jsonl, dev/1.csv.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from raylm.errors import DataError
from raylm.rows.read import kind_of
from raylm.storage import StoragePath, find

_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# What the datasets library takes for a split's name, in this order.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NUMBERED = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}\b")
_NAME = re.compile(r"^([ \t]*(?:-[ \t]+)?(?:config_name|split):[ \t]+)([\w.-]+)(?=[ \t\r]*$)", re.M)
_WHOLE = "train"  # the split of files that name none, and of data that was saved without a name

Sized: TypeAlias = tuple[StoragePath, int]


def file_kind(path: StoragePath) -> str | None:
    """The kind of rows that a data file of this name holds; None for what is no data."""
    kind = kind_of(path) if path.name not in _NOT_DATA else None
    return "jsonl" if kind == "json" else kind  # as the datasets library writes .json


def split_files(folder: StoragePath, split: str = "train", config: str | None = None) -> list[Sized]:
    """The files of a split in order, all of one kind; a DataError that names the splits when there is no such one."""
    files = {path.url.removeprefix(folder.url).lstrip("/"): (path, size) for path, size in _all_files(folder)}
    if not files:
        raise DataError(f"there is no folder {folder.url}, or nothing in it", hint="check the folder's path")
    splits = _saved(folder, files) or _configured(config, folder, files) or _by_name(files)
    chosen = splits.get(split)
    if not chosen:
        raise DataError(
            f"{folder.url} has no split {split!r}; it has: {', '.join(sorted(splits)) or 'no data file'}",
            hint="set `split` to one of them" if splits else "check the path: it must name the folder",
        )
    kinds = sorted({str(file_kind(files[name][0])) for name in chosen})
    if len(kinds) > 1:
        raise DataError(
            f"split {split!r} of {folder.url} is there as {' and '.join(kinds)}",
            hint="name one of them: a source of that kind, with a glob of its files",
        )
    return [files[name] for name in chosen]


def _all_files(folder: StoragePath) -> list[Sized]:
    root = folder.url.rstrip("/")
    found = find(f"{root}/**/*", folder.connection.quick)
    return [
        (StoragePath(path.url, folder.connection), size)
        for path, size in found
        if not _is_hidden(path.url[len(root) :])
    ]


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "__")) for part in path.split("/"))


def _saved(folder: StoragePath, files: Mapping[str, Sized]) -> dict[str, list[str]]:
    """What save_to_disk wrote: the names of each split's files; nothing if it did not."""
    if "dataset_dict.json" in files:
        names = _json(folder / "dataset_dict.json").get("splits") or []
        return {name: _state_files(folder / name, f"{name}/", files)[1] for name in names}
    if "state.json" in files:
        name, parts = _state_files(folder, "", files)
        return {name: parts}
    return {}


def _state_files(folder: StoragePath, prefix: str, files: Mapping[str, Sized]) -> tuple[str, list[str]]:
    if f"{prefix}state.json" not in files:
        raise DataError(f"{folder.url} has no state.json", hint="the dataset was not saved to its end; save it again")
    state = _json(folder / "state.json")
    names = [f"{prefix}{part['filename']}" for part in state.get("_data_files") or []]
    missing = [name for name in names if name not in files]
    if missing:
        raise DataError(f"{folder.url}/state.json names {missing[0]}, which is not there", hint="copy it again")
    return state.get("_split") or _WHOLE, names


def _json(path: StoragePath) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path.url} is not JSON: {error}", hint="fetch it again") from error
    return content if isinstance(content, dict) else {}


def _configured(config: str | None, folder: StoragePath, files: Mapping[str, Sized]) -> dict[str, list[str]]:
    """The splits of one of the configurations that README.md describes; nothing if it describes none."""
    configs = {str(entry["config_name"]): entry for entry in _described(folder, files)}
    if not configs and config is not None:
        there = {name: file for name, file in files.items() if name.startswith(f"{config}/")}
        if not there:
            raise DataError(
                f"{folder.url} has no configuration {config!r}: its README.md names none, and there is no such folder",
                hint="leave `config` out, or name a folder of it",
            )
        return _by_name(there)
    if not configs:
        return {}
    chosen = [name for name, entry in configs.items() if entry.get("default") is True] or ["default"]
    name = config or (chosen[0] if chosen[0] in configs else min(configs))
    if name not in configs or (config is None and len(configs) > 1 and chosen[0] not in configs):
        asked = f"no configuration {config!r}; it has" if config else "several configurations"
        raise DataError(
            f"{folder.url} has {asked}: {', '.join(sorted(configs))}",
            hint="set `config` to one of them",
        )
    base = str(configs[name].get("data_dir") or "").removeprefix("./").strip("/")
    base = f"{base}/" if base and base != "." else ""
    if "data_files" not in configs[name]:
        found = _by_name({file: there for file, there in files.items() if file.startswith(base)})
        if not found:
            raise DataError(
                f"{folder.url}: no data file is in {base}, the data_dir of configuration {name!r}",
                hint="fetch the folder again, or correct its README.md",
            )
        return found
    found = {}
    for split, patterns in _patterns(configs[name]["data_files"]):
        whole = [_glob(base + pattern.removeprefix("./")) for pattern in patterns]
        names = [file for pattern in whole for file in sorted(files) if pattern.fullmatch(file)]
        if not names:
            raise DataError(
                f"{folder.url}: no file matches {', '.join(patterns)}, the split {split!r} of configuration {name!r}",
                hint="fetch the folder again, or correct its README.md",
            )
        found.setdefault(split, []).extend(dict.fromkeys(names))
    return found


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """The splits of `data_files` with their patterns, in any of the forms that the hub takes."""
    if isinstance(data_files, dict) and "path" not in data_files:
        return [(str(split), _listed(patterns)) for split, patterns in data_files.items()]
    found = []
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        entry = entry if isinstance(entry, dict) else {"path": entry}
        found.append((str(entry.get("split", _WHOLE)), _listed(entry.get("path"))))
    return found


def _listed(patterns: Any) -> list[str]:
    return [str(one) for one in (patterns if isinstance(patterns, list) else [patterns]) if one]


def _glob(pattern: str) -> re.Pattern[str]:
    """A pattern of data files as the hub reads it: `*` and `?` stay within a folder, `**` crosses folders."""
    pattern = pattern.removeprefix("./")
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", f"{pattern}**" if pattern.endswith("/") else pattern)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    try:
        return re.compile("".join(meaning.get(part) or _literal(part) for part in parts))
    except re.error as error:
        raise DataError(f"README.md names no pattern of files: {pattern} ({error})", hint="correct it") from error


def _literal(part: str) -> str:
    return f"[{'^' * (part[1] in '!^')}{part[1:-1].lstrip('!^')}]" if part.startswith("[") else re.escape(part)


def _described(folder: StoragePath, files: Mapping[str, Sized]) -> list[dict[str, Any]]:
    if "README.md" not in files:
        return []
    import yaml

    text = (folder / "README.md").read_bytes().decode(errors="replace").lstrip("\ufeff\r\n")
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        # Names stay as they are written: `no` is Norwegian, and 2020 no number.
        card = yaml.safe_load(_NAME.sub(r'\1"\2"', head[1])) if head else None
    except yaml.YAMLError as error:
        raise DataError(f"{folder.url}/README.md begins with broken YAML: {error}", hint="correct it") from error
    configs = card.get("configs") if isinstance(card, dict) else None
    described = [config for config in configs or [] if isinstance(config, dict) and "config_name" in config]
    return [config for config in described if "data_files" in config or "data_dir" in config]


def _by_name(files: Mapping[str, Sized]) -> dict[str, list[str]]:
    """Splits by the names of files and folders; where none names a split, all files are one."""
    data = [name for name, (path, _) in sorted(files.items()) if file_kind(path)]
    found: dict[str, list[str]] = {}
    for name in data:
        if split := _split_in(name):
            found.setdefault(split, []).append(name)
    return found or ({_WHOLE: data} if data else {})


def _split_in(name: str) -> str | None:
    """The split that a path names: by its number, as the hub writes them, or by a word in a folder's or the file's."""
    if numbered := _NUMBERED.search(name):
        return numbered["split"]
    words = re.split(r"[/._\s-]|(?<=\D)(?=\d)|(?<=\d)(?=\D)", name)
    return next((split for split, those in _WORDS.items() if any(word in those for word in words)), None)
