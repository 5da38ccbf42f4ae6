"""What preparation will do, decided before it starts: input files are cut and grouped into units of about equal size.

Comes in: the listing of each source. Leaves: a `WorkList` that is written down before any work, so that a later attempt
does exactly the same. A unit is what one task prepares, one shard holds, and one restart repeats.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ValidationError

from raylm.config.job import Job
from raylm.config.prepare import PrepareSettings
from raylm.config.prepare.sources import SourceSettings
from raylm.errors import ConfigError, DataError
from raylm.prep.ranges import Atom, FileRange
from raylm.rows import COMPRESSED, BrokenFile, opened, split_files
from raylm.rows.huggingface import file_kind
from raylm.storage import Connection, NotFound, StoragePath, find


@dataclass(frozen=True)
class Unit:
    """Pieces of one source that become one shard a side."""

    number: int
    source: str
    pieces: tuple[FileRange, ...]


@dataclass(frozen=True)
class WorkList:
    """Everything that shapes the result, and the units in order."""

    settings: dict[str, Any]
    units: tuple[Unit, ...]

    def to_json(self) -> str:
        """As it is written down."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> WorkList:
        """What to_json wrote."""
        content = json.loads(text)
        units = tuple(
            Unit(unit["number"], unit["source"], tuple(FileRange(**piece) for piece in unit["pieces"]))
            for unit in content["units"]
        )
        return cls(content["settings"], units)


_SHAPES_NOTHING: dict[str, Any] = {
    "output": True,
    "workers": True,
    "max_broken_share": True,
    "require": True,
    "sources": {"__all__": {"license"}},
}


def shaping_settings(job: Job) -> dict[str, Any]:
    """The settings that decide what the shards hold; where they lie and how fast they come does not count."""
    return _shaping(job.prepare)


def _shaping(settings: PrepareSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=_SHAPES_NOTHING)


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
            lines.append(f"{prefix}.{key} is {_short(old)} there and {_short(new)} here")
    return lines


def refuse_other_settings(there: dict[str, Any], wanted: dict[str, Any], output: StoragePath) -> None:
    """Raise a ConfigError when the folder belongs to a job of other settings.

    A setting that raylm did not have when the folder was made had its default then.
    """
    with contextlib.suppress(ValidationError):
        there = _shaping(PrepareSettings.model_validate(there))
    lines = differences(there, wanted)
    if lines:
        raise ConfigError(
            f"{output.url} holds data prepared with other settings: {'; '.join(lines)}",
            hint="choose another prepare.output, or remove that folder to prepare it anew",
        )


def as_found(source: SourceSettings, place: StoragePath) -> SourceSettings:
    """The source as this file of it is read: one of kind huggingface takes the file's own kind."""
    if source.kind != "huggingface":
        return source
    return source.model_copy(update={"kind": file_kind(place), "document": "line"})


def listed(source: SourceSettings, connection: Connection) -> list[tuple[StoragePath, int]]:
    """The source's files in order; a DataError when there is none."""
    if source.kind == "huggingface":
        try:
            return split_files(StoragePath(str(source.glob), connection), source.split, source.config)
        except DataError as error:
            raise DataError(f"source {source.name!r}: {error.message}", hint=error.hint) from error
    if source.paths is not None:
        return _from_list(source, StoragePath(source.paths, connection), connection)
    assert source.glob is not None  # the schema asks for one of them
    files = [(StoragePath(place.url, connection), size) for place, size in find(source.glob, connection.quick)]
    if not files:
        raise DataError(
            f"source {source.name!r}: no file matches {source.glob}",
            hint="check the path and the wildcards (`*` stays within a folder, `**/` crosses folders)",
        )
    return files


def _from_list(source: SourceSettings, place: StoragePath, connection: Connection) -> list[tuple[StoragePath, int]]:
    try:
        with opened(place) as stream:
            names = [line.decode().strip() for line in stream]
    except (NotFound, UnicodeDecodeError) as error:
        raise DataError(
            f"source {source.name!r}: {place.url} is no list of files: {error}",
            hint="paths must be a text file, plain or compressed, with one path a line",
        ) from error
    files = [StoragePath(f"{source.prefix}{name}", connection) for name in names if name]
    if not files:
        raise DataError(f"source {source.name!r}: {place.url} names no file", hint="correct the list, or use a glob")
    found = []
    for number, file in enumerate(files, 1):
        try:
            found.append((file, file.size()))
        except NotFound as error:
            raise DataError(
                f"source {source.name!r}: {file.url}, line {number} of {place.url}, does not exist",
                hint="check `prefix` of this source, or take the line out",
            ) from error
    return found


def units_of(pieces: Iterable[tuple[str, FileRange, int]], unit_bytes: int) -> tuple[Unit, ...]:
    """Group consecutive (source, piece, bytes) of one source until a unit is full."""
    groups: list[tuple[str, list[FileRange]]] = []
    filled = 0
    for source, piece, size in pieces:
        if not groups or groups[-1][0] != source or filled + size > unit_bytes:
            groups.append((source, []))
            filled = 0
        groups[-1][1].append(piece)
        filled += size
    return tuple(Unit(number, source, tuple(group)) for number, (source, group) in enumerate(groups))


def ranges_of(
    source: SourceSettings,
    files: Iterable[tuple[StoragePath, int]],
    unit_bytes: int,
    atoms: Callable[[SourceSettings, StoragePath], list[Atom] | None],
) -> Iterator[tuple[str, FileRange, int]]:
    """Cut files larger than a unit where their kind allows it; `atoms` tells between which parts."""
    for place, size in files:
        source = as_found(source, place)
        whole = FileRange(place.url, size)
        lines = source.kind == "jsonl" or (source.kind == "text" and source.document != "file")
        if size <= unit_bytes:
            yield source.name, whole, size
        elif lines and not place.name.endswith(COMPRESSED):
            parts = -(-size // unit_bytes)
            cuts = [size * part // parts for part in range(parts + 1)]
            for start, stop in itertools.pairwise(cuts):
                yield source.name, replace(whole, start=start, stop=stop), stop - start
        elif (parts_there := _atoms(atoms, source, place)) is not None:
            for start, stop, held in _runs(parts_there, unit_bytes):
                yield source.name, replace(whole, start=start, stop=stop), held
        else:
            yield source.name, whole, size


def _atoms(
    atoms: Callable[[SourceSettings, StoragePath], list[Atom] | None], source: SourceSettings, place: StoragePath
) -> list[Atom] | None:
    try:
        return atoms(source, place)
    except BrokenFile:
        return None  # whoever reads it sets it aside


def capped(
    pieces: Iterable[tuple[str, FileRange, int]], most: int, count: Callable[[FileRange, int], int]
) -> Iterator[tuple[str, FileRange, int]]:
    """The first pieces that hold `most` documents; `count` says how many a piece has, up to a number."""
    left = most
    for source, piece, size in pieces:
        if left == 0:
            return
        found = count(piece, left)
        left -= found
        yield source, replace(piece, limit=found), size


def _runs(atoms: Iterable[Atom], most: int) -> Iterator[tuple[int, int, int]]:
    """Neighbouring parts joined until they hold `most` bytes, as (start, stop, bytes)."""
    run: list[Atom] = []
    held = 0
    for atom in atoms:
        if run and held + atom.size > most:
            yield run[0].start, run[-1].stop, held
            run, held = [], 0
        run.append(atom)
        held += atom.size
    if run:
        yield run[0].start, run[-1].stop, held


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
