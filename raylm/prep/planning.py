"""Comes in: a job's sources as they are found. Leaves: the work list, the same one for every attempt."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

from raylm.config.job import Job
from raylm.config.prepare.sources import SourceSettings
from raylm.errors import ConfigError, DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.passes import FITTED_FOLDER, WORK_FOLDER, passes_of
from raylm.prep.ranges import FileRange
from raylm.prep.readers.python_docs import documents as python_docs
from raylm.prep.readers.read import atoms, read_range
from raylm.prep.units import (
    WorkList,
    capped,
    listed,
    ranges_of,
    refuse_other_settings,
    shaping_settings,
    units_of,
)
from raylm.shards import TOKENIZER_FOLDER
from raylm.storage import Connection, NotFound, StoragePath

_WORK_LIST = "worklist.json"
_SHARD_BYTES_PER_RAW_BYTE = 0.3  # 0.22 was measured on English; with some room
_PASS_BYTES_PER_RAW_BYTE = 0.5  # of the documents between two passes, in zstd; two passes' stand at once


def stored_worklist(job: Job, output: StoragePath) -> WorkList | None:
    """The work list that an earlier attempt wrote down; None when there was none."""
    try:
        worklist = WorkList.from_json((output / WORK_FOLDER / _WORK_LIST).read_text())
    except NotFound:
        return None
    refuse_other_settings(worklist.settings, shaping_settings(job), output)
    return worklist


def new_worklist(job: Job, output: StoragePath) -> WorkList:
    """List the sources, cut them into units, and write that down."""
    taken = {"train", "held_out", TOKENIZER_FOLDER, FITTED_FOLDER} & {child.name for child in output.list()}
    if taken:
        raise ConfigError(
            f"{output.url} already holds {', '.join(sorted(taken))}, but no work list and no manifest of raylm",
            hint="choose another prepare.output, or empty that folder",
        )
    output.check_writable()
    units = units_of(_all_pieces(job, output), job.prepare.unit_bytes)
    if not units:
        raise DataError("the sources hold no document", hint="check prepare.sources: every file is empty")
    raw_bytes = sum((piece.stop or piece.size) - piece.start for unit in units for piece in unit.pieces)
    between = min(2, len(passes_of(job.prepare.steps)) - 1)
    output.check_writable(int(raw_bytes * (_SHARD_BYTES_PER_RAW_BYTE + between * _PASS_BYTES_PER_RAW_BYTE)))
    worklist = WorkList(shaping_settings(job), units)
    (output / WORK_FOLDER / _WORK_LIST).write_text(worklist.to_json())
    return worklist


def _all_pieces(job: Job, output: StoragePath) -> Iterator[tuple[str, FileRange, int]]:
    connection = job.object_store.connection()
    for source in job.prepare.sources:
        if source.kind == "python-docs":
            yield from _spooled(source, output, job.prepare.unit_bytes)
            continue
        pieces = ranges_of(source, listed(source, connection), job.prepare.unit_bytes, atoms)
        if source.max_documents is None:
            yield from pieces
        else:
            yield from capped(pieces, source.max_documents, _counter(source, connection))


def _counter(source: SourceSettings, connection: Connection) -> Callable[[FileRange, int], int]:
    def count(piece: FileRange, most: int) -> int:
        return sum(1 for _ in itertools.islice(read_range(source, piece, connection, Skipped()), most))

    return count


def _spooled(source: SourceSettings, output: StoragePath, unit_bytes: int) -> Iterator[tuple[str, FileRange, int]]:
    """Write this machine's documentation as JSON lines: other nodes, or a later attempt, may have other packages."""
    lines = (
        json.dumps({"id": name, "text": text}).encode() + b"\n"
        for name, text in itertools.islice(python_docs(), source.max_documents)
    )
    for number, part in enumerate(_parts(lines, unit_bytes)):
        place = output / WORK_FOLDER / f"{source.name}-{number:06d}.jsonl"
        written = place.write_parts(part)
        yield source.name, FileRange(place.url, written), written


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
