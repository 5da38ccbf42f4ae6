"""Raw files become documents: text, tables, web archives, Wikipedia dumps; compressed as they are found.

Comes in: a `Piece`. Leaves: `Document`s in the file's order. Two neighbouring pieces never share a document and never
lose one: a piece owns the lines (or blocks) that begin in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from raylm.config.schema import TextSource
from raylm.errors import DataError
from raylm.prep.compressed import COMPRESSED, opened
from raylm.prep.left_out import BrokenFile, LeftOut
from raylm.prep.lines import blocks, json_lines, lines
from raylm.prep.plan import Atom, Piece
from raylm.prep.tables import arrow_rows, csv_rows, parquet_rows, row_groups
from raylm.prep.web import pages
from raylm.prep.wikipedia import articles, stream_begins
from raylm.records import Document
from raylm.storage import Place, Reach


def read_piece(source: TextSource, piece: Piece, reach: Reach, left_out: LeftOut) -> Iterator[Document]:
    """The piece's documents in order, at most `piece.limit` of them; what is empty or broken is left out."""
    place = Place(piece.url, reach)
    _check_unchanged(place, piece)
    if piece.limit == 0:
        return
    try:
        yield from _documents(source, piece, place, left_out)
    except BrokenFile as error:
        left_out.broken_file(piece.url, error)


def _documents(source: TextSource, piece: Piece, place: Place, left_out: LeftOut) -> Iterator[Document]:
    taken = 0
    for position, raw in _raw(source, place, piece, left_out):
        text = _decoded(source, place, position, raw, left_out)
        if text is None:
            continue
        if not text.strip():
            left_out.note("empty")
            continue
        left_out.documents += 1
        yield Document(f"{piece.url}#{position}", text, source.name)
        taken += 1
        if taken == piece.limit:
            return


def atoms(source: TextSource, place: Place) -> list[Atom] | None:
    """The parts that a large file of this kind consists of, where it may only be cut between them; None: not at all."""
    if source.kind == "parquet":
        return row_groups(place)
    if source.kind == "wikipedia" and (begins := stream_begins(place)) is not None:
        return [Atom(start, stop, stop - start) for start, stop in itertools.pairwise([*begins, place.size()])]
    return None


def _check_unchanged(place: Place, piece: Piece) -> None:
    size = place.size()
    if size != piece.size:
        raise DataError(
            f"{place.url} changed while it was being prepared: {piece.size} bytes when listed, {size} now",
            hint="put the old file back, or remove the unfinished output folder and start again",
        )


def _raw(source: TextSource, place: Place, piece: Piece, left_out: LeftOut) -> Iterator[tuple[int, bytes | str]]:
    """Each document's position (byte, or row for Parquet) and raw content."""
    if source.kind == "parquet":
        yield from parquet_rows(source, place, piece)
        return
    if source.kind == "wikipedia" and piece.stop is not None:
        with place.open_read() as stored:
            run = (piece.start, piece.stop)
            yield from articles(place, stored, left_out, most_bytes=source.most_bytes, run=run)
        return
    with opened(place, most_ratio=source.most_ratio) as stream:
        if source.kind == "wikipedia":
            yield from articles(place, stream, left_out, most_bytes=source.most_bytes)
        elif source.kind in ("warc", "wet"):
            yield from pages(source, place, stream, left_out)
        elif source.kind == "arrow":
            yield from arrow_rows(source, place, stream)
        elif source.kind == "csv":
            yield from csv_rows(source, place, stream, piece, left_out)
        elif source.kind in ("jsonl", "python-docs"):
            yield from json_lines(source, place, stream, piece, left_out)
        elif source.document == "file":
            content = stream.read(source.most_bytes + 1)
            if len(content) > source.most_bytes:
                left_out.note("too_large", place.url, 0, f"more than {source.most_bytes} bytes")
            else:
                yield 0, content
        elif source.document == "line":
            for position, line in lines(source, place, stream, piece, left_out):
                yield position, line.rstrip(b"\r\n")
        else:
            yield from blocks(source, place, stream, piece, left_out)


def _decoded(source: TextSource, place: Place, position: int, raw: bytes | str, left_out: LeftOut) -> str | None:
    if isinstance(raw, str):
        return _encodable(source, place, position, raw, left_out)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if source.encoding_errors == "skip":
            left_out.note("encoding")
            return None
        unpacked = " of the unpacked text" if place.name.endswith(COMPRESSED) else ""
        rows = {"parquet": "row", "arrow": "row", "csv": "line"}
        where = f"{rows[source.kind]} {position}, " if source.kind in rows else ""
        where += f"byte {error.start if where else position + error.start}"
        raise DataError(
            f"{place.url} is not UTF-8: 0x{raw[error.start]:02x} at {where}{unpacked}",
            hint="convert the file to UTF-8, or set encoding_errors: skip on this source to leave such documents out",
        ) from error


def _encodable(source: TextSource, place: Place, position: int, text: str, left_out: LeftOut) -> str | None:
    """JSON can spell half a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if source.encoding_errors == "skip":
            left_out.note("encoding")
            return None
        raise DataError(
            f"{place.url} at {position}: character {error.start} of the text is a lone surrogate, not UTF-8",
            hint="correct the text, or set encoding_errors: skip on this source to leave such documents out",
        ) from error
    return text
