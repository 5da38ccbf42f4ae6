"""Raw files become documents: text, tables, web archives, Wikipedia dumps; compressed as they are found.

Comes in: a `Piece`. Leaves: `Document`s in the file's order. Two neighbouring pieces never share a document and never
lose one: a piece owns the lines (or blocks) that begin in it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from raylm.config.schema import TextSource
from raylm.errors import DataError
from raylm.prep.compressed import COMPRESSED, opened
from raylm.prep.left_out import BROKEN_RECORD, EXAMPLES, BrokenFile, LeftOut
from raylm.prep.plan import Atom, Piece
from raylm.prep.web import pages
from raylm.prep.wikipedia import articles, stream_begins
from raylm.records import Document
from raylm.storage import Place, Reach

_READ_BYTES = 1 << 20
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"


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
            raise BrokenFile(f"{place.url} is not a Parquet file: {error}", hint="correct prepare.sources") from error
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
    with opened(place, most_ratio=source.most_ratio) as stream:
        if source.kind == "wikipedia":
            yield from articles(place, stream, left_out, most_bytes=source.most_bytes)
        elif source.kind in ("warc", "wet"):
            yield from pages(source, place, stream, left_out)
        elif source.kind == "arrow":
            yield from _arrow(source, place, stream)
        elif source.kind == "csv":
            yield from _csv(source, place, stream, piece, left_out)
        elif source.kind in ("jsonl", "python-docs"):
            yield from _json_lines(source, place, stream, piece, left_out)
        elif source.document == "file":
            content = stream.read(source.most_bytes + 1)
            if len(content) > source.most_bytes:
                left_out.note("too_large", place.url, 0, f"more than {source.most_bytes} bytes")
            else:
                yield 0, content
        elif source.document == "line":
            for position, line in _lines(source, place, stream, piece, left_out):
                yield position, line.rstrip(b"\r\n")
        else:
            yield from _blocks(source, place, stream, piece, left_out)


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


def _lines(
    source: TextSource, place: Place, stream: BinaryIO, piece: Piece, left_out: LeftOut
) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the piece, with their positions; one that is too long is counted and never held."""
    position = _first_line(stream, piece.start)
    while piece.stop is None or position < piece.stop:
        line, length = _line(stream, source.most_bytes)
        if not length:
            return
        if line:
            yield position, line
        else:
            left_out.note("too_large", place.url, position, f"a line of {length} bytes")
        position += length


def _line(stream: BinaryIO, most_bytes: int) -> tuple[bytes, int]:
    """The next line and its length; b"" in place of one that is longer than allowed. Length 0 at the end."""
    line = stream.readline(most_bytes + 1)
    if len(line) <= most_bytes:
        return line, len(line)
    length = len(line)
    while not line.endswith(b"\n") and (line := stream.readline(_READ_BYTES)):
        length += len(line)
    return b"", length


def _first_line(stream: BinaryIO, start: int) -> int:
    """Go to the first line that begins at `start` or after it."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    return start - 1 + _line(stream, _READ_BYTES)[1]


def _blocks(
    source: TextSource, place: Place, stream: BinaryIO, piece: Piece, left_out: LeftOut
) -> Iterator[tuple[int, bytes]]:
    """Paragraphs between blank lines. A piece's part begins after the first blank line that begins in or after it.

    The rule only looks at the file and the cut, so that the piece before ends exactly where this one begins.
    """
    position = _first_line(stream, piece.start)
    if piece.start:
        blank = -1
        while blank < 0:
            line, length = _line(stream, source.most_bytes)
            if not length:
                break
            blank = position if line and not line.strip() else -1
            position += length
        if piece.stop is not None and blank >= piece.stop:
            return  # one block covers the whole piece; it belongs to an earlier one
    begin, block, held = position, b"", 0
    while True:
        line, length = _line(stream, source.most_bytes)
        blank_line = bool(line) and not line.strip()
        if held and (blank_line or not length):
            if held <= source.most_bytes:
                yield begin, block.rstrip(b"\r\n")
            else:
                left_out.note("too_large", place.url, begin, f"a block of {held} bytes")
            block, held = b"", 0
        elif length and not blank_line:
            begin = position if not held else begin
            held += length
            block = block + line if held <= source.most_bytes else b""
        if not length or (blank_line and piece.stop is not None and position >= piece.stop):
            return
        position += length


def _json_lines(
    source: TextSource, place: Place, stream: BinaryIO, piece: Piece, left_out: LeftOut
) -> Iterator[tuple[int, bytes | str]]:
    for position, line in _lines(source, place, stream, piece, left_out):
        if not line.strip():
            continue
        try:
            value = _json_text(source, line)
        except UnicodeDecodeError:
            yield position, line  # the caller says where, or skips it
        except (DataError, ValueError, RecursionError) as error:
            left_out.broken_record(_bad_line(place, position, error, left_out))
        else:
            yield position, value


def _json_text(source: TextSource, line: bytes) -> str:
    column = "text" if source.kind == "python-docs" else source.column
    record = json.loads(line)
    hint = f"set `column` of source {source.name!r} to the key that holds the text"
    if not isinstance(record, dict) or column not in record:
        keys = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"has no key {column!r}; it has: {keys}", hint=hint)
    value = record[column]
    if not isinstance(value, str | None):
        raise DataError(f"has {type(value).__name__}, not text, as {column!r}", hint=hint)
    return value or ""


def _bad_line(place: Place, position: int, error: Exception, left_out: LeftOut) -> DataError:
    kept = len(left_out.examples.get(BROKEN_RECORD, ()))
    # Counting lines reads the file up to here: only for the few that a person will see.
    where = f"line {_line_number(place, position)}" if kept < EXAMPLES else f"byte {position}"
    if isinstance(error, DataError):
        return DataError(f"{place.url} {where} {error.message}", hint=error.hint)
    return DataError(
        f"{place.url} {where} is not JSON: {error}",
        hint="each line must be one JSON object; correct or remove this line",
    )


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
            _find_column(source, place, file.schema_arrow.names)
            stop = file.num_row_groups if piece.stop is None else piece.stop
            row = sum(file.metadata.row_group(number).num_rows for number in range(piece.start))
            groups = list(range(piece.start, stop))
            for batch in file.iter_batches(1024, row_groups=groups, columns=[source.column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    yield row, _table_value(value, source, place, row)
                    row += 1
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place.url} holds text that is not UTF-8, near row {row}: {error}",
                hint="write the column again as UTF-8, or as binary with encoding_errors: skip",
            ) from error
        except pa.ArrowException as error:
            raise BrokenFile(f"{place.url} cannot be read as Parquet: {error}", hint="fetch it again") from error


def _arrow(source: TextSource, place: Place, stream: BinaryIO) -> Iterator[tuple[int, bytes | str]]:
    """Batches of either of Arrow's formats, the stream (as Hugging Face datasets are saved) or the file."""
    import pyarrow as pa

    row = 0
    try:
        # A file is a stream between its magic word, padded to eight bytes, and a footer that only seekers need.
        begins = stream.read(8)
        watched = _Watched(b"" if begins.startswith(b"ARROW1") else begins, stream)
        with pa.ipc.open_stream(cast(BinaryIO, watched)) as reader:
            column = _find_column(source, place, reader.schema.names)
            for batch in reader:
                for value in batch.column(column).to_pylist():
                    yield row, _table_value(value, source, place, row)
                    row += 1
        if watched.last != _ARROW_END:  # Arrow takes a file that is cut between two batches for a whole one
            raise BrokenFile(
                f"{place.url} ends after row {row} without its end mark", hint="fetch it again; it is truncated"
            )
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the storage's, which says so itself
        raise BrokenFile(f"{place.url} cannot be read as Arrow, row {row}: {error}", hint="fetch it again") from error


class _Watched(io.RawIOBase):
    """Bytes that were read already, and what comes after them; `last` holds the last eight that were given."""

    last = b""

    def __init__(self, begins: bytes, rest: BinaryIO) -> None:
        self._begins = begins
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._begins[: len(buffer)] or self._rest.read(len(buffer))
        self._begins = self._begins[len(data) :] if self._begins else b""
        self.last = (self.last + data[-8:])[-8:]
        buffer[: len(data)] = data
        return len(data)


def _csv(
    source: TextSource, place: Place, stream: BinaryIO, piece: Piece, left_out: LeftOut
) -> Iterator[tuple[int, bytes | str]]:
    """Rows of comma-separated values, or tab-separated where the name ends so; the first row names the columns."""
    # What is not UTF-8 passes through the parser unchanged, so that the caller can say where it is, or skip it.
    lines = (line.decode(errors="surrogateescape") for _, line in _lines(source, place, stream, piece, left_out))
    csv.field_size_limit(source.most_bytes)
    rows = csv.reader(lines, delimiter="\t" if ".tsv" in place.name else ",", strict=True)
    names = next(rows, [])
    column = _find_column(source, place, [name.removeprefix("\ufeff") for name in names])
    while True:
        try:
            row = next(rows)
            if row and len(row) != len(names):
                raise csv.Error(f"{len(row)} values for {len(names)} columns")
        except StopIteration:
            return
        except csv.Error as error:
            why = f"{place.url} line {rows.line_num} is broken: {error}"
            left_out.broken_record(DataError(why, hint="quote values that hold commas, quotes or line ends"))
        else:
            if row:
                yield rows.line_num, row[column].encode(errors="surrogateescape")


def _find_column(source: TextSource, place: Place, names: list[str]) -> int:
    if source.column not in names:
        raise DataError(
            f"{place.url} has no column {source.column!r}; it has: {', '.join(names)}",
            hint=f"set `column` of source {source.name!r} to the column that holds the text",
        )
    return names.index(source.column)


def _table_value(value: object, source: TextSource, place: Place, row: int) -> bytes | str:
    if value is None:
        return ""
    if isinstance(value, str | bytes):
        return value
    raise DataError(
        f"{place.url} row {row}: column {source.column!r} is {type(value).__name__}, not text",
        hint=f"set `column` of source {source.name!r} to the column that holds the text",
    )
