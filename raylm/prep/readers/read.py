"""Ranges of raw files become documents, in the file's order.

Two neighbouring ranges never share a document and never lose one: a range owns the lines (or blocks) that begin in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import EMPTY_FILE, Skipped
from raylm.prep.ranges import FileRange
from raylm.prep.readers.base import Reading, S
from raylm.prep.readers.decoding import binary_text, checked, decode, is_binary
from raylm.records import Document
from raylm.rows import BrokenFile
from raylm.storage import Connection, StoragePath


def read_range(source: SourceSettings, part: FileRange, connection: Connection, skipped: Skipped) -> Iterator[Document]:
    """The range's documents in order, at most `part.limit` of them; what is empty or broken is skipped."""
    path = StoragePath(part.url, connection)
    _check_unchanged(path, part)
    if part.limit == 0:
        return
    before = skipped.documents + skipped.reasons.total()
    try:
        yield from _documents(Reading(source, path, part, skipped))
    except BrokenFile as error:
        skipped.broken_file(part.url, error)
    if not part.start and part.stop is None and skipped.documents + skipped.reasons.total() == before:
        skipped.skip(EMPTY_FILE, part.url, 0)


def _documents(reading: Reading[S]) -> Iterator[Document]:
    taken, skipped = 0, reading.skipped
    for raw in SOURCES.get(reading.source.kind).read(reading):
        content, position = raw.content, raw.position
        text = decode(reading, position, content) if isinstance(content, bytes) else checked(reading, position, content)
        if text is None:
            continue
        if not text.strip():
            example = (reading.range.url, position) if skipped.wants_example("empty") else ()
            skipped.skip("empty", *example)
            continue
        if is_binary(text):
            skipped.broken_record(binary_text(reading, position))
            continue
        skipped.documents += 1
        skipped.characters += len(text)
        yield Document(f"{reading.range.url}#{position}", text, reading.source.name, raw.meta)
        taken += 1
        if taken == reading.range.limit:
            return


def _check_unchanged(path: StoragePath, part: FileRange) -> None:
    size = path.size()
    if size != part.size:
        raise DataError(
            f"{path.url} changed while it was being prepared: {part.size} bytes when listed, {size} now",
            hint="put the old file back, or remove the unfinished output folder and start again",
        )
