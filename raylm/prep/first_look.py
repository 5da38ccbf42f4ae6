"""A first look at what `raylm prepare` would read: what it would stumble over at once, and how much text there is.

Nothing is written. Files of the sources are listed and the first document of each is read, as preparing does it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

from raylm.config.base import Settings
from raylm.config.job import Job
from raylm.config.paths import PathMark
from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.config.prepare.steps import OperatorSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import BROKEN_FILE, BROKEN_RECORD, Skipped
from raylm.prep.listed import refuse_own_folder
from raylm.prep.ranges import FileRange
from raylm.prep.readers.read import read_range
from raylm.prep.tokenizer import TokenizerFacts, import_tokenizer
from raylm.prep.tokenizer import load as load_tokenizer
from raylm.prep.units import ranges_of, units_of
from raylm.rows import COMPRESSED, BadRow, RowFile, read_rows
from raylm.rows.compressed import unpacked_ratio
from raylm.storage import Connection, StoragePath, find

_TRIED_FILES = 3  # files without a document, before that is taken for the job's fault
_TRIED_RECORDS = 100
_RATIO_FILES = 3
Files = list[tuple[StoragePath, int]]


@dataclass(frozen=True)
class RawText:
    """What the sources hold: `stored_bytes` of files, and about how many when those that are compressed are unpacked.

    collected: some sources are no files, and what they hold is only known when they have been collected.
    """

    files: int
    units: int
    stored_bytes: int
    unpacked_bytes: int
    collected: bool


def look(job: Job) -> RawText:
    """List the sources and read the first document of each; a DataError says what preparing would stumble over."""
    connection = job.object_store.connection()
    for step in job.prepare.steps:
        _check_files_of(step)
    listed: list[tuple[SourceSettings, Files]] = []
    for source in job.prepare.sources:
        kind = SOURCES.get(source.kind)
        if kind.collect is None:
            files = kind.files(source, connection)
            _check_readable(source, files, connection)
            check_metadata(source, files)
            refuse_own_folder(source, files, StoragePath(job.shards_url, connection))
            listed.append((source, files))
    if job.prepare.tokenizer.path is not None:
        tokenizer_facts(job)
    ranges = (part for source, files in listed for part in ranges_of(source, files, job.prepare.unit_bytes))
    return RawText(
        files=sum(len(files) for _, files in listed),
        units=len(units_of(ranges, job.prepare.unit_bytes)),
        stored_bytes=sum(size for _, files in listed for _, size in files),
        unpacked_bytes=sum(_unpacked_bytes(files) for _, files in listed),
        collected=len(listed) < len(job.prepare.sources),
    )


def tokenizer_facts(job: Job) -> TokenizerFacts:
    """The facts of the tokenizer that the job names, brought in as preparing would."""
    settings = job.prepare.tokenizer
    assert settings.path is not None
    with tempfile.TemporaryDirectory(prefix="raylm-tokenizer-") as scratch:
        folder = StoragePath(scratch)
        import_tokenizer(StoragePath(settings.path, job.object_store.connection()), folder, settings)
        return load_tokenizer(folder)[1]


def _check_readable(source: SourceSettings, files: Files, connection: Connection) -> None:
    """Raise a DataError where the first files give no document, and something is broken in them."""
    skipped = Skipped()
    for path, size in [file for file in files if file[1]][:_TRIED_FILES]:
        if next(read_range(source, FileRange(path.url, size, limit=1), connection, skipped), None) is not None:
            return
    for reason in (BROKEN_FILE, BROKEN_RECORD):
        if skipped.reasons[reason]:
            raise DataError(f"source {source.name!r}: {skipped.examples[reason][0]}", hint=skipped.hint)


def check_metadata(source: SourceSettings, files: Files) -> None:
    """Raise a DataError where none of the first records of JSON lines has a key that `meta` names."""
    names = list(getattr(source, "meta", ())) if source.kind == "jsonl" else []
    if not names:
        return
    there: set[str] = set()
    for path, _ in [file for file in files if file[1]][:_TRIED_FILES]:
        for row in islice(read_rows(RowFile(path, on_bad=_ignored), "jsonl"), _TRIED_RECORDS):
            there |= {str(key) for key in row.value}
    missing = [name for name in names if name not in there]
    if there and missing:
        raise DataError(
            f"source {source.name!r} has no key {missing[0]!r}, which `meta` names, in any of its first records; they "
            f"have: {', '.join(sorted(there))}",
            hint=f"set `meta` of source {source.name!r} to keys that are there",
        )


def _ignored(bad: BadRow) -> None:
    """Reading the source counts what is broken."""


def _unpacked_bytes(files: Files) -> int:
    """Bytes of the files, those of the compressed ones as the first of them unpack."""
    packed = [(path, size) for path, size in files if path.name.endswith(COMPRESSED)]
    ratios = [unpacked_ratio(path) for path, _ in packed[:_RATIO_FILES]]
    ratio = sum(ratios) / len(ratios) if ratios else 1.0
    plain = sum(size for _, size in files) - sum(size for _, size in packed)
    return plain + round(ratio * sum(size for _, size in packed))


def _check_files_of(step: OperatorSettings) -> None:
    """Raise a DataError for a file on this machine that a step's settings name and that is not there."""
    for name, path in _paths_in(step.settings):
        place = StoragePath(path)
        if place.is_local and not _is_there(place):
            raise DataError(
                f"step {step.name}: {name} names {path}, which is not there",
                hint=f"correct {name} of this step in prepare.steps",
            )


def _is_there(place: StoragePath) -> bool:
    if any(sign in place.url for sign in "*?["):
        return any(find(place.url, place.connection))
    return place.exists()


def _paths_in(settings: Settings, above: str = "") -> Iterator[tuple[str, str]]:
    """Every path in some settings, with its key."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Settings):
                yield from _paths_in(one, f"{above}{name}.")
            elif isinstance(one, str) and _is_path((field.annotation, *field.metadata)):
                yield f"{above}{name}", one


def _is_path(types: Sequence[Any]) -> bool:
    return any(isinstance(one, PathMark) or _is_path(get_args(one)) for one in types)
