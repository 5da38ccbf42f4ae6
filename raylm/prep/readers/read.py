"""Raw files become documents: text, tables, web archives, Wikipedia dumps; compressed as they are found.

Comes in: a `FileRange`. Leaves: `Document`s in the file's order. Two neighbouring ranges never share a document and
never lose one: a range owns the lines (or blocks) that begin in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import BrokenFile, Skipped
from raylm.prep.readers.base import Raw
from raylm.prep.readers.binary import binary_text, is_binary, refuse_binary
from raylm.prep.readers.books.books import book_texts
from raylm.prep.readers.compressed import COMPRESSED, opened
from raylm.prep.readers.lines import blocks, json_lines, single_lines, whole_file
from raylm.prep.readers.tables import arrow_rows, csv_rows, parquet_rows, row_groups
from raylm.prep.readers.wat import envelopes
from raylm.prep.readers.web_pages import pages
from raylm.prep.readers.wikipedia import articles, stream_begins
from raylm.prep.units import Atom, FileRange, as_found
from raylm.records import Document
from raylm.storage import Connection, StoragePath

_TEXTS = ("csv", "jsonl", "text")


def read_range_of_file(
    source: SourceSettings, piece: FileRange, connection: Connection, skipped: Skipped
) -> Iterator[Document]:
    """The piece's documents in order, at most `piece.limit` of them; what is empty or broken is left out."""
    place = StoragePath(piece.url, connection)
    source = as_found(source, place)
    _check_unchanged(place, piece)
    if piece.limit == 0:
        return
    try:
        yield from _documents(source, piece, place, skipped)
    except BrokenFile as error:
        skipped.broken_file(piece.url, error)


def _documents(source: SourceSettings, piece: FileRange, place: StoragePath, skipped: Skipped) -> Iterator[Document]:
    taken = 0
    for raw in _raw(source, place, piece, skipped):
        text = _decoded(source, place, raw, skipped)
        if text is None:
            continue
        if not text.strip():
            skipped.note("empty")
            continue
        if is_binary(text):
            skipped.broken_record(binary_text(place, raw.position))
            continue
        skipped.documents += 1
        yield Document(f"{piece.url}#{raw.position}", text, source.name, raw.meta)
        taken += 1
        if taken == piece.limit:
            return


def atoms(source: SourceSettings, place: StoragePath) -> list[Atom] | None:
    """The parts that a large file of this kind consists of, where it may only be cut between them; None: not at all."""
    if source.kind == "parquet":
        return row_groups(place)
    if source.kind == "wikipedia" and (begins := stream_begins(place)) is not None:
        return [Atom(start, stop, stop - start) for start, stop in itertools.pairwise([*begins, place.size()])]
    return None


def _check_unchanged(place: StoragePath, piece: FileRange) -> None:
    size = place.size()
    if size != piece.size:
        raise DataError(
            f"{place.url} changed while it was being prepared: {piece.size} bytes when listed, {size} now",
            hint="put the old file back, or remove the unfinished output folder and start again",
        )


def _raw(source: SourceSettings, place: StoragePath, piece: FileRange, skipped: Skipped) -> Iterator[Raw]:
    """What the piece holds, in the file's order."""
    if source.kind == "parquet":
        yield from parquet_rows(source, place, piece)
        return
    if source.kind == "wikipedia" and piece.stop is not None:
        with place.open_read() as stored:
            run = (piece.start, piece.stop)
            yield from articles(place, stored, skipped, max_bytes=source.max_bytes, run=run)
        return
    if source.kind == "book":
        yield from book_texts(source, place, skipped)
        return
    with opened(place, max_compression_ratio=source.max_compression_ratio) as stream:
        if source.kind in _TEXTS:
            refuse_binary(place, stream)
        if source.kind == "wikipedia":
            yield from articles(place, stream, skipped, max_bytes=source.max_bytes)
        elif source.kind in ("warc", "wet"):
            yield from pages(source, place, stream, skipped)
        elif source.kind == "wat":
            yield from envelopes(source, place, stream, skipped)
        elif source.kind == "arrow":
            yield from arrow_rows(source, place, stream)
        elif source.kind == "csv":
            yield from csv_rows(source, place, stream, piece, skipped)
        elif source.kind in ("jsonl", "python-docs"):
            yield from json_lines(source, place, stream, piece, skipped)
        elif source.document == "file":
            yield from whole_file(source, place, stream, skipped)
        elif source.document == "line":
            yield from single_lines(source, place, stream, piece, skipped)
        else:
            yield from blocks(source, place, stream, piece, skipped)


def _decoded(source: SourceSettings, place: StoragePath, raw: Raw, skipped: Skipped) -> str | None:
    position, content = raw.position, raw.content
    if isinstance(content, str):
        return _encodable(source, place, position, content, skipped)
    try:
        text = content.decode()
        return text.removeprefix("\ufeff") if position == 0 else text  # a byte order mark
    except UnicodeDecodeError as error:
        if source.encoding_errors == "skip":
            skipped.note("encoding", place.url, position, f"0x{content[error.start]:02x} is not UTF-8")
            return None
        unpacked = " of the unpacked text" if place.name.endswith(COMPRESSED) else ""
        rows = {"parquet": "row", "arrow": "row", "csv": "line"}
        where = f"{rows[source.kind]} {position}, " if source.kind in rows else ""
        where += f"byte {error.start if where else position + error.start}"
        raise DataError(
            f"{place.url} is not UTF-8: 0x{content[error.start]:02x} at {where}{unpacked}",
            hint="convert the file to UTF-8, or set encoding_errors: skip on this source to leave such documents out",
        ) from error


def _encodable(source: SourceSettings, place: StoragePath, position: int, text: str, skipped: Skipped) -> str | None:
    """JSON can spell half a surrogate pair, which no UTF-8 can hold."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if source.encoding_errors == "skip":
            skipped.note("encoding", place.url, position, "a lone surrogate")
            return None
        raise DataError(
            f"{place.url} at {position}: character {error.start} of the text is a lone surrogate, not UTF-8",
            hint="correct the text, or set encoding_errors: skip on this source to leave such documents out",
        ) from error
    return text
