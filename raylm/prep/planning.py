"""The work list of a preparation: its sources listed and cut into units, once for all attempts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

from raylm.config.job import Job
from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import ConfigError, DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.first_look import check_metadata
from raylm.prep.listed import named, refuse_own_folder
from raylm.prep.passes import FITTED_FOLDER, WORK_FOLDER, passes_of
from raylm.prep.ranges import FileRange
from raylm.prep.readers.read import read_range
from raylm.prep.units import (
    WorkList,
    capped,
    other_version,
    ranges_of,
    refuse_other_settings,
    shaping_settings,
    units_of,
)
from raylm.shards import TOKENIZER_FOLDER
from raylm.storage import Connection, NotFound, StoragePath

_WORK_LIST = "worklist.json"
_SIDES = ("train", "held_out")  # the folders of shards
_OLD_WORK_LIST = "plan.json"  # of version 1
_SHARD_BYTES_PER_RAW_BYTE = 0.3  # 0.22 was measured on English; with some room
_PASS_BYTES_PER_RAW_BYTE = 0.5  # of the documents between two passes, in zstd; two passes' stand at once


def stored_worklist(job: Job, output: StoragePath) -> WorkList | None:
    """The work list that an earlier attempt wrote down; None when there was none.

    One of other settings is forgotten where no unit was finished by it: the job was mended as an error asked for.
    """
    folder = output / WORK_FOLDER
    try:
        worklist = WorkList.from_json((folder / _WORK_LIST).read_text())
    except NotFound:
        if (folder / _OLD_WORK_LIST).exists():
            raise _in(folder, other_version()) from None
        return None
    except ConfigError as error:
        raise _in(folder, error) from error
    try:
        refuse_other_settings(worklist.settings, shaping_settings(job), output)
    except ConfigError:
        if any(child.name.startswith("pass-") and (child / "units").list() for child in folder.list()):
            raise
        for name in (TOKENIZER_FOLDER, FITTED_FOLDER, *_SIDES, WORK_FOLDER):
            (output / name).remove()
        return None
    return worklist


def _in(folder: StoragePath, error: ConfigError) -> ConfigError:
    return ConfigError(f"{folder.url}: {error.message}", hint=error.hint)


def new_worklist(job: Job, output: StoragePath) -> WorkList:
    """List the sources, cut them into units, and write that down."""
    taken = {*_SIDES, TOKENIZER_FOLDER, FITTED_FOLDER} & {child.name for child in output.list()}
    if taken:
        raise ConfigError(
            f"{output.url} already holds {', '.join(sorted(taken))}, but no work list and no manifest of raylm",
            hint="choose another prepare.output, or empty that folder",
        )
    output.check_writable()
    files: dict[str, dict[str, int]] = {}
    ranges = list(_all_ranges(job, output, files))
    units = units_of(ranges, job.prepare.unit_bytes)
    if not units:
        raise DataError("the sources hold no document", hint="check prepare.sources: every file is empty")
    raw_bytes = sum(size for _, _, size in ranges)
    between = min(2, len(passes_of(job.prepare.steps)) - 1)
    output.check_writable(int(raw_bytes * (_SHARD_BYTES_PER_RAW_BYTE + between * _PASS_BYTES_PER_RAW_BYTE)))
    worklist = WorkList(shaping_settings(job), units, files)
    (output / WORK_FOLDER / _WORK_LIST).write_text(worklist.to_json())
    return worklist


def _all_ranges(
    job: Job, output: StoragePath, files: dict[str, dict[str, int]]
) -> Iterator[tuple[str, FileRange, int]]:
    """The ranges of all sources; `files` takes what was listed."""
    connection = job.object_store.connection()
    for source in job.prepare.sources:
        kind = SOURCES.get(source.kind)
        if kind.collect is not None:
            documents = itertools.islice(kind.collect(source), source.max_documents)
            yield from _collected(source.name, documents, output, job.prepare.unit_bytes)
            continue
        found = kind.files(source, connection)
        check_metadata(source, found)
        refuse_own_folder(source, found, output)
        files[source.name] = {named(path, output): size for path, size in found}
        ranges = ranges_of(source, found, job.prepare.unit_bytes)
        if source.max_documents is None:
            yield from ranges
        else:
            yield from capped(ranges, source.max_documents, _counter(source, connection))


def _counter(source: SourceSettings, connection: Connection) -> Callable[[FileRange, int], int]:
    def count(part: FileRange, max_documents: int) -> int:
        return sum(1 for _ in itertools.islice(read_range(source, part, connection, Skipped()), max_documents))

    return count


def _collected(
    source: str, documents: Iterator[tuple[str, str]], output: StoragePath, unit_bytes: int
) -> Iterator[tuple[str, FileRange, int]]:
    """Write documents of this machine as JSON lines: other nodes, or a later attempt, may have others."""
    lines = (json.dumps({"id": name, "text": text}).encode() + b"\n" for name, text in documents)
    for number, part in enumerate(_parts(lines, unit_bytes)):
        path = output / WORK_FOLDER / f"{source}-{number:06d}.jsonl"
        written = path.write_parts(part)
        yield source, FileRange(path.url, written), written


def _parts(lines: Iterator[bytes], max_bytes: int) -> Iterator[Iterator[bytes]]:
    """Runs of lines of about `max_bytes` each; one has to be used up before the next is asked for."""

    def run(first: bytes) -> Iterator[bytes]:
        held = len(first)
        yield first
        while held < max_bytes and (line := next(lines, None)) is not None:
            held += len(line)
            yield line

    while (line := next(lines, None)) is not None:
        yield run(line)
