"""Raw files become documents: text, JSON lines, Parquet, web archives, Wikipedia dumps; compressed as they are found.

Comes in: a `Piece`. Leaves: `Document`s in the file's order. Two neighbouring pieces never share a document and never
lose one: a piece owns the lines (or blocks) that begin in it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import BinaryIO

from raylm.config.schema import TextSource
from raylm.errors import DataError
from raylm.prep.compressed import COMPRESSED, opened
from raylm.prep.left_out import LeftOut
from raylm.prep.plan import Atom, Piece
from raylm.prep.web import pages
from raylm.prep.wikipedia import articles, stream_begins
from raylm.records import Document
from raylm.storage import Place, Reach


def read_piece(source: TextSource, piece: Piece, reach: Reach, left_out: LeftOut) -> Iterator[Document]:
    """The piece's documents in order, at most `piece.limit` of them; empty ones are left out."""
    place = Place(piece.url, reach)
    _check_unchanged(place, piece)
    if piece.limit == 0:
        return
    taken = 0
    for position, raw in _raw(source, place, piece, left_out):
        text = _decoded(source, place, position, raw, left_out)
        if text is None:
            continue
        if not text.strip():
            left_out.note("empty")
            continue
        yield Document(f"{piece.url}#{position}", text, source.name)
        taken += 1
        if taken == piece.limit:
            return


def atoms(source: TextSource, place: Place) -> list[Atom] | None:
    """The parts that a large file of this kind consists of, where it may only be cut between them; None: not at all."""
    if source.kind == "parquet":
        return [Atom(number, number + 1, size) for number, size in enumerate(_row_group_bytes(place))]
    if source.kind == "wikipedia" and (begins := stream_begins(place)) is not None:
        return [Atom(start, stop, stop - start) for start, stop in itertools.pairwise([*begins, place.size()])]
    return None


def _row_group_bytes(place: Place) -> list[int]:
    """The size of each row group of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with place.open_read() as stream:
        try:
            footer = pq.read_metadata(stream)
        except pa.ArrowException as error:
            raise DataError(f"{place.url} is not a Parquet file: {error}", hint="correct prepare.sources") from error
        return [footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)]


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
        yield from _parquet(source, place, piece)
        return
    if source.kind == "wikipedia" and piece.stop is not None:
        with place.open_read() as stored:
            run = (piece.start, piece.stop)
            yield from articles(place, stored, left_out, most_bytes=source.most_bytes, run=run)
        return
    with opened(place) as stream:
        if source.kind == "wikipedia":
            yield from articles(place, stream, left_out, most_bytes=source.most_bytes)
        elif source.kind in ("warc", "wet"):
            yield from pages(source, place, stream, left_out)
        elif source.kind in ("jsonl", "python-docs"):
            yield from _json_lines(source, place, stream, piece)
        elif source.document == "file":
            yield 0, stream.read()
        elif source.document == "line":
            for position, line in _lines(stream, piece):
                yield position, line.rstrip(b"\r\n")
        else:
            yield from _blocks(stream, piece)


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
        where = f"row {position}, byte {error.start}" if source.kind == "parquet" else f"byte {position + error.start}"
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


def _lines(stream: BinaryIO, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the piece, with their positions."""
    position = _first_line(stream, piece.start)
    while piece.stop is None or position < piece.stop:
        line = stream.readline()
        if not line:
            return
        yield position, line
        position += len(line)


def _first_line(stream: BinaryIO, start: int) -> int:
    """Go to the first line that begins at `start` or after it."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    return start - 1 + len(stream.readline())


def _blocks(stream: BinaryIO, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Paragraphs between blank lines. A piece's part begins after the first blank line that begins in or after it.

    The rule only looks at the file and the cut, so that the piece before ends exactly where this one begins.
    """
    position = _first_line(stream, piece.start)
    if piece.start:
        blank = -1
        while blank < 0 and (line := stream.readline()):
            blank = position if not line.strip() else -1
            position += len(line)
        if piece.stop is not None and blank >= piece.stop:
            return  # one block covers the whole piece; it belongs to an earlier one
    begin, block = position, b""
    while line := stream.readline():
        if line.strip():
            if not block:
                begin = position
            block += line
        elif block:
            yield begin, block.rstrip(b"\r\n")
            block = b""
        ended = not line.strip() and piece.stop is not None and position >= piece.stop
        position += len(line)
        if ended:
            return
    if block:
        yield begin, block.rstrip(b"\r\n")


def _json_lines(source: TextSource, place: Place, stream: BinaryIO, piece: Piece) -> Iterator[tuple[int, bytes | str]]:
    column = "text" if source.kind == "python-docs" else source.column
    for position, line in _lines(stream, piece):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except UnicodeDecodeError:
            yield position, line  # the caller says where, or skips it
            continue
        except ValueError as error:
            raise DataError(
                f"{place.url} line {_line_number(place, position)} is not JSON: {error}",
                hint="each line must be one JSON object; correct or remove this line",
            ) from error
        if not isinstance(record, dict) or column not in record:
            keys = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
            raise DataError(
                f"{place.url} line {_line_number(place, position)} has no key {column!r}; it has: {keys}",
                hint=f"set `column` of source {source.name!r} to the key that holds the text",
            )
        value = record[column]
        if not isinstance(value, str | None):
            raise DataError(
                f"{place.url} line {_line_number(place, position)}: {column!r} is {type(value).__name__}, not text",
                hint=f"set `column` of source {source.name!r} to the key that holds the text",
            )
        yield position, value or ""


def _line_number(place: Place, position: int) -> int:
    """The line that begins at this byte, counted from 1; only errors ask, so reading the file again is no matter."""
    number, left = 1, position
    with opened(place) as stream:
        while left > 0 and (data := stream.read(min(left, 1 << 20))):
            number += data.count(b"\n")
            left -= len(data)
    return number


def _parquet(source: TextSource, place: Place, piece: Piece) -> Iterator[tuple[int, bytes | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with place.open_read() as stream:
        try:
            file = pq.ParquetFile(stream)
            names = file.schema_arrow.names
            if source.column not in names:
                raise DataError(
                    f"{place.url} has no column {source.column!r}; it has: {', '.join(names)}",
                    hint=f"set `column` of source {source.name!r} to the column that holds the text",
                )
            stop = file.num_row_groups if piece.stop is None else piece.stop
            row = sum(file.metadata.row_group(number).num_rows for number in range(piece.start))
            groups = list(range(piece.start, stop))
            for batch in file.iter_batches(1024, row_groups=groups, columns=[source.column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    yield row, _parquet_value(value, source, place, row)
                    row += 1
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place.url} holds text that is not UTF-8, near row {row}: {error}",
                hint="write the column again as UTF-8, or as binary with encoding_errors: skip",
            ) from error
        except pa.ArrowException as error:
            raise DataError(f"{place.url} cannot be read as Parquet: {error}", hint="fetch it again") from error


def _parquet_value(value: object, source: TextSource, place: Place, row: int) -> bytes | str:
    if value is None:
        return ""
    if isinstance(value, str | bytes):
        return value
    raise DataError(
        f"{place.url} row {row}: column {source.column!r} is {type(value).__name__}, not text",
        hint=f"set `column` of source {source.name!r} to the column that holds the text",
    )
