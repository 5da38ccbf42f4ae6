"""What preparation will do, decided before it starts: input files are cut and grouped into units of about equal size.

The `WorkList` is written down before any work, so that a later attempt does exactly the same. A unit is what one task
prepares, one shard holds, and one restart repeats.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raylm.config.job import Job
from raylm.config.paths import context
from raylm.config.prepare import PrepareSettings
from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import ConfigError
from raylm.prep.ranges import FileRange, Part
from raylm.rows import BrokenFile
from raylm.storage import StoragePath


@dataclass(frozen=True)
class Unit:
    """Ranges of one source's files that become one shard a side."""

    number: int
    source: str
    ranges: tuple[FileRange, ...]


_SHOWN = 120  # characters of a setting in an error
WORK_VERSION = 3  # of what stands under _work; raised with every change of its files


def other_version() -> ConfigError:
    """The error that the work folder was written by another version of raylm."""
    return ConfigError(
        "the unfinished preparation in this folder is of another version of raylm",
        hint="remove the folder, or choose another prepare.output, and prepare it anew",
    )


@dataclass(frozen=True)
class WorkList:
    """Everything that shapes the result, and the units in order. files: of each source, with their bytes."""

    settings: dict[str, Any]
    units: tuple[Unit, ...]
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> str:
        """As it is written down."""
        return json.dumps({"version": WORK_VERSION} | asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> WorkList:
        """What to_json wrote; a ConfigError when another version of raylm did."""
        content = json.loads(text)
        if content.get("version") != WORK_VERSION:
            raise other_version()
        units = tuple(
            Unit(unit["number"], unit["source"], tuple(FileRange(**part) for part in unit["ranges"]))
            for unit in content["units"]
        )
        return cls(content["settings"], units, content["files"])


_SHAPES_NOTHING: dict[str, Any] = {
    "output": True,
    "workers": True,
    "max_broken_share": True,
    "require": True,
    "sources": {"__all__": {"license"}},
}


def shaping_settings(job: Job) -> dict[str, Any]:
    """The settings that decide what the shards hold; where they lie and how fast they come does not count.

    Paths that were given as relative ones are relative to the output: sources and shards may move together.
    """
    return _shaping(job.prepare, StoragePath(job.shards_url).local_path())


def _shaping(settings: PrepareSettings, output: Path | None) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=_SHAPES_NOTHING, context=context(output))


def differences(there: dict[Any, Any], wanted: dict[Any, Any], prefix: str = "prepare") -> list[str]:
    """Lines that say which settings differ, and how; of lists of one length, which items."""
    lines: list[str] = []
    for key in sorted({*there, *wanted}):
        old, new = there.get(key), wanted.get(key)
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old, new = dict(enumerate(old)), dict(enumerate(new))
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}.{key}")
        elif old != new:
            lines.append(_apart(f"{prefix}.{key}", old, new))
    return lines


def refuse_other_settings(there: dict[str, Any], wanted: dict[str, Any], output: StoragePath) -> None:
    """Raise a ConfigError when the folder belongs to a job of other settings.

    A setting that raylm did not have when the folder was made had its default then.
    """
    with contextlib.suppress(ValidationError):
        folder = output.local_path()
        there = _shaping(PrepareSettings.model_validate(there, context=context(folder)), folder)
    lines = differences(there, wanted)
    if lines:
        raise ConfigError(
            f"{output.url} holds data prepared with other settings: {'; '.join(lines)}",
            hint="choose another prepare.output, or remove that folder to prepare it anew",
        )


def units_of(ranges: Iterable[tuple[str, FileRange, int]], unit_bytes: int) -> tuple[Unit, ...]:
    """Group consecutive (source, range, bytes) of one source until a unit is full."""
    groups: list[tuple[str, list[FileRange]]] = []
    filled = 0
    for source, part, size in ranges:
        if not groups or groups[-1][0] != source or filled + size > unit_bytes:
            groups.append((source, []))
            filled = 0
        groups[-1][1].append(part)
        filled += size
    return tuple(Unit(number, source, tuple(group)) for number, (source, group) in enumerate(groups))


def ranges_of(
    source: SourceSettings, files: Iterable[tuple[StoragePath, int]], unit_bytes: int
) -> Iterator[tuple[str, FileRange, int]]:
    """(source, range, bytes) of the files; those larger than a unit are cut where their kind allows it."""
    kind = SOURCES.get(source.kind)
    for path, size in files:
        whole = FileRange(path.url, size)
        parts: list[Part] | None = None
        if size > unit_bytes:
            with contextlib.suppress(BrokenFile):  # whoever reads it sets it aside
                parts = kind.cut(source, path, size, unit_bytes)
        if parts is None:
            yield source.name, whole, size
        for start, stop, held in parts or ():
            yield source.name, replace(whole, start=start, stop=stop), held


def capped(
    ranges: Iterable[tuple[str, FileRange, int]], max_documents: int, count: Callable[[FileRange, int], int]
) -> Iterator[tuple[str, FileRange, int]]:
    """The first ranges that hold `max_documents`; `count` says how many a range has, up to a number."""
    left = max_documents
    for source, part, size in ranges:
        if left == 0:
            return
        found = count(part, left)
        left -= found
        yield source, replace(part, limit=found), size


def _apart(key: str, old: object, new: object) -> str:
    """One setting that differs; of lists of two lengths, their first entry that does."""
    if not (isinstance(old, list) and isinstance(new, list) and old and new):
        return f"{key} is {_shown(old, new)}"
    first = next((n for n, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), None)
    first = min(len(old), len(new)) if first is None else first
    one, other = (items[first] if first < len(items) else None for items in (old, new))
    return f"{key} has {len(old)} entries there and {len(new)} here, of which {first} is {_shown(one, other)}"


def _shown(old: object, new: object) -> str:
    """Both values; of long ones, what stands where they begin to differ."""
    texts = [json.dumps(old), json.dumps(new)]
    if max(map(len, texts)) > _SHOWN:
        differ = (number for number, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1])
        begin = next(differ, min(map(len, texts))) - _SHOWN // 3
        texts = [f"...{text[begin:]}" if begin > 0 else text for text in texts]
    there, here = (text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..." for text in texts)
    return f"{there} there and {here} here"
