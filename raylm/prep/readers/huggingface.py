"""Folders as Hugging Face's datasets library writes them and its hub holds them: which files are a split.

Comes in: a folder. Leaves: the files of one split, each of a kind that is read as if a glob had named it. Known are
what save_to_disk writes (a data set, or several splits), the data files that a hub's README.md names for each
configuration, and, without those, names that tell the split: data/train-00000-of-00010.parquet, test.jsonl, dev/1.csv.
"""

from __future__ import annotations

import fnmatch
import json
import re
from typing import Any

from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.readers.compressed import COMPRESSED
from raylm.storage import Connection, StoragePath, find

_KINDS = {
    **{".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "text"},
}
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# What the datasets library takes for a split's name, in this order.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NUMBERED = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}\b")
_WHOLE = "train"  # the split of files that name none, and of data that was saved without a name

Sized = tuple[StoragePath, int]


def kind_of(place: StoragePath) -> str | None:
    """The kind of source that a file of this name is; None for no data."""
    name = place.name
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    if place.name in _NOT_DATA:
        return None
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), None)


def split_files(source: SourceSettings, connection: Connection) -> list[Sized]:
    """The files of the source's split, in order; a DataError that names the splits when there is no such one."""
    assert source.glob is not None  # the schema asks for it
    folder = StoragePath(source.glob, connection)
    files = {place.url.removeprefix(folder.url).lstrip("/"): (place, size) for place, size in _all_files(folder)}
    if not files:
        raise DataError(f"source {source.name!r}: there is no folder {folder.url}, or nothing in it", hint="check glob")
    splits = _saved(folder, files) or _configured(source, folder, files) or _named(files)
    chosen = splits.get(source.split)
    if not chosen:
        raise DataError(
            f"source {source.name!r}: {folder.url} has no split {source.split!r}; "
            f"it has: {', '.join(sorted(splits)) or 'no data file'}",
            hint="set `split` of this source to one of them" if splits else "check glob: it must name the folder",
        )
    kinds = sorted({str(kind_of(files[name][0])) for name in chosen})
    if len(kinds) > 1:
        raise DataError(
            f"source {source.name!r}: split {source.split!r} of {folder.url} is there as {' and '.join(kinds)}",
            hint="name one of them: a source of that kind, with a glob of its files",
        )
    return [files[name] for name in chosen]


def _all_files(folder: StoragePath) -> list[Sized]:
    root = folder.url.rstrip("/")
    found = find(f"{root}/**/*", folder.connection.quick)
    return [
        (StoragePath(place.url, folder.connection), size)
        for place, size in found
        if not _is_hidden(place.url[len(root) :])
    ]


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "__")) for part in path.split("/"))


def _saved(folder: StoragePath, files: dict[str, Sized]) -> dict[str, list[str]]:
    """What save_to_disk wrote: the names of each split's files; nothing if it did not."""
    if "dataset_dict.json" in files:
        names = _json(folder / "dataset_dict.json").get("splits") or []
        return {name: _state_files(folder / name, f"{name}/", files)[1] for name in names}
    if "state.json" in files:
        name, parts = _state_files(folder, "", files)
        return {name: parts}
    return {}


def _state_files(folder: StoragePath, prefix: str, files: dict[str, Sized]) -> tuple[str, list[str]]:
    if f"{prefix}state.json" not in files:
        raise DataError(f"{folder.url} has no state.json", hint="the data set was not saved to its end; save it again")
    state = _json(folder / "state.json")
    names = [f"{prefix}{part['filename']}" for part in state.get("_data_files") or []]
    missing = [name for name in names if name not in files]
    if missing:
        raise DataError(f"{folder.url}/state.json names {missing[0]}, which is not there", hint="copy it again")
    return state.get("_split") or _WHOLE, names


def _json(place: StoragePath) -> dict[str, Any]:
    try:
        content = json.loads(place.read_bytes())
    except ValueError as error:
        raise DataError(f"{place.url} is not JSON: {error}", hint="fetch it again") from error
    return content if isinstance(content, dict) else {}


def _configured(source: SourceSettings, folder: StoragePath, files: dict[str, Sized]) -> dict[str, list[str]]:
    """The splits of one of the configurations that README.md describes; nothing if it describes none."""
    configs = {config["config_name"]: config for config in _described(folder, files)}
    if not configs:
        return {}
    name = source.config or ("default" if "default" in configs else min(configs))
    if name not in configs or (source.config is None and len(configs) > 1 and "default" not in configs):
        asked = f"no configuration {source.config!r}; it has" if source.config else "several configurations"
        raise DataError(
            f"source {source.name!r}: {folder.url} has {asked}: {', '.join(sorted(configs))}",
            hint="set `config` of this source to one of them",
        )
    found: dict[str, list[str]] = {}
    data_files = configs[name]["data_files"]
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        entry = entry if isinstance(entry, dict) else {"split": _WHOLE, "path": entry}
        patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        names = [file for pattern in patterns for file in sorted(files) if fnmatch.fnmatchcase(file, pattern)]
        found.setdefault(entry.get("split", _WHOLE), []).extend(dict.fromkeys(names))
    return found


def _described(folder: StoragePath, files: dict[str, Sized]) -> list[dict[str, Any]]:
    if "README.md" not in files:
        return []
    import yaml

    text = (folder / "README.md").read_bytes().decode(errors="replace")
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        card = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise DataError(f"{folder.url}/README.md begins with broken YAML: {error}", hint="correct it") from error
    configs = card.get("configs") if isinstance(card, dict) else None
    return [config for config in configs or [] if "config_name" in config and "data_files" in config]


def _named(files: dict[str, Sized]) -> dict[str, list[str]]:
    """Splits by the names of files and folders; where none names a split, all files are one."""
    data = [name for name, (place, _) in sorted(files.items()) if kind_of(place)]
    told: dict[str, list[str]] = {}
    for name in data:
        if split := _split_in(name):
            told.setdefault(split, []).append(name)
    return told or ({_WHOLE: data} if data else {})


def _split_in(name: str) -> str | None:
    """The split that a path tells: by its number, as the hub writes them, or by a word in a folder's or the file's."""
    if numbered := _NUMBERED.search(name):
        return numbered["split"]
    words = re.split(r"[/._\s-]|(?<=\D)(?=\d)|(?<=\d)(?=\D)", name)
    return next((split for split, those in _WORDS.items() if any(word in those for word in words)), None)
