"""Ranges of raw files become documents, in the file's order.

Two neighbouring ranges never share a document and never lose one: a range owns the lines (or blocks) that begin in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import Skipped
from raylm.prep.ranges import Atom, FileRange
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.books.books import book_texts
from raylm.prep.readers.decoding import binary_text, checked, decode, is_binary
from raylm.prep.readers.tables import json_documents, parquet_atoms, table_documents
from raylm.prep.readers.text import text_documents
from raylm.prep.readers.wat import envelopes
from raylm.prep.readers.web_pages import pages
from raylm.prep.readers.wikipedia import articles, stream_begins
from raylm.prep.units import as_found
from raylm.records import Document
from raylm.rows import BrokenFile
from raylm.storage import Connection, StoragePath


def read_range(source: SourceSettings, part: FileRange, connection: Connection, skipped: Skipped) -> Iterator[Document]:
    """The range's documents in order, at most `part.limit` of them; what is empty or broken is skipped."""
    path = StoragePath(part.url, connection)
    source = as_found(source, path)
    _check_unchanged(path, part)
    if part.limit == 0:
        return
    try:
        yield from _documents(Reading(source, path, part, skipped))
    except BrokenFile as error:
        skipped.broken_file(part.url, error)


def _documents(reading: Reading) -> Iterator[Document]:
    taken, skipped = 0, reading.skipped
    for raw in _raw(reading):
        content, position = raw.content, raw.position
        text = decode(reading, position, content) if isinstance(content, bytes) else checked(reading, position, content)
        if text is None:
            continue
        if not text.strip():
            skipped.skip("empty")
            continue
        if is_binary(text):
            skipped.broken_record(binary_text(reading, position))
            continue
        skipped.documents += 1
        yield Document(f"{reading.range.url}#{position}", text, reading.source.name, raw.meta)
        taken += 1
        if taken == reading.range.limit:
            return


def atoms(source: SourceSettings, path: StoragePath) -> list[Atom] | None:
    """The parts that a large file of this kind consists of, where it may only be cut between them; None: not at all."""
    if source.kind == "parquet":
        return parquet_atoms(path)
    if source.kind == "wikipedia" and (begins := stream_begins(path)) is not None:
        return [Atom(start, stop, stop - start) for start, stop in itertools.pairwise([*begins, path.size()])]
    return None


def _check_unchanged(path: StoragePath, part: FileRange) -> None:
    size = path.size()
    if size != part.size:
        raise DataError(
            f"{path.url} changed while it was being prepared: {part.size} bytes when listed, {size} now",
            hint="put the old file back, or remove the unfinished output folder and start again",
        )


def _raw(reading: Reading) -> Iterator[Raw]:
    """What the range holds, in the file's order."""
    kind = reading.source.kind
    if kind in ("csv", "parquet", "arrow"):
        yield from table_documents(reading, kind)
    elif kind in ("jsonl", "python-docs"):
        yield from json_documents(reading)
    elif kind == "wikipedia":
        yield from articles(reading)
    elif kind == "book":
        yield from book_texts(reading)
    elif kind in ("warc", "wet"):
        yield from pages(reading)
    elif kind == "wat":
        yield from envelopes(reading)
    else:
        yield from text_documents(reading)
