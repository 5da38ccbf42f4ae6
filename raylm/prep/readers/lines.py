"""Text files become documents or rows: lines, blocks between blank lines, and JSON lines.

Comes in: an unpacked file and the piece that is wanted of it. Leaves: texts by the byte they begin at, in order; a
piece owns the lines and blocks that begin in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import BROKEN_RECORD, EXAMPLES, Skipped
from raylm.prep.readers.base import Meta, Raw, taken_along
from raylm.prep.readers.compressed import opened
from raylm.prep.units import FileRange
from raylm.storage import StoragePath

_READ_BYTES = 1 << 20
_DECODER = json.JSONDecoder()
_NO_META: Meta = {}


def lines(
    source: SourceSettings, place: StoragePath, stream: BinaryIO, piece: FileRange, skipped: Skipped
) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the piece, with their positions; one that is too long is counted and never held."""
    position = _first_line(stream, piece.start)
    while piece.stop is None or position < piece.stop:
        line, length = _line(stream, source.max_bytes)
        if not length:
            return
        if line:
            yield position, line
        else:
            skipped.note("too_large", place.url, position, f"a line of {length} bytes")
        position += length


def whole_file(source: SourceSettings, place: StoragePath, stream: BinaryIO, skipped: Skipped) -> Iterator[Raw]:
    """The file as one text, unless it is too large."""
    content = stream.read(source.max_bytes + 1)
    if len(content) > source.max_bytes:
        skipped.note("too_large", place.url, 0, f"more than {source.max_bytes} bytes")
    else:
        yield Raw(0, content)


def single_lines(
    source: SourceSettings, place: StoragePath, stream: BinaryIO, piece: FileRange, skipped: Skipped
) -> Iterator[Raw]:
    """Each line as a text of its own."""
    for position, line in lines(source, place, stream, piece, skipped):
        yield Raw(position, line.rstrip(b"\r\n"))


def _line(stream: BinaryIO, max_bytes: int) -> tuple[bytes, int]:
    """The next line and its length; b"" in place of one that is longer than allowed. Length 0 at the end."""
    line = stream.readline(max_bytes + 1)
    if len(line) <= max_bytes:
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


def blocks(
    source: SourceSettings, place: StoragePath, stream: BinaryIO, piece: FileRange, skipped: Skipped
) -> Iterator[Raw]:
    """Paragraphs between blank lines. A piece's part begins after the first blank line that begins in or after it.

    The rule only looks at the file and the cut, so that the piece before ends exactly where this one begins.
    """
    position = _first_line(stream, piece.start)
    if piece.start:
        blank = -1
        while blank < 0:
            line, length = _line(stream, source.max_bytes)
            if not length:
                break
            blank = position if line and not line.strip() else -1
            position += length
        if piece.stop is not None and blank >= piece.stop:
            return  # one block covers the whole piece; it belongs to an earlier one
    begin, block, held = position, b"", 0
    while True:
        line, length = _line(stream, source.max_bytes)
        blank_line = bool(line) and not line.strip()
        if held and (blank_line or not length):
            if held <= source.max_bytes:
                yield Raw(begin, block.rstrip(b"\r\n"))
            else:
                skipped.note("too_large", place.url, begin, f"a block of {held} bytes")
            block, held = b"", 0
        elif length and not blank_line:
            begin = position if not held else begin
            held += length
            block = block + line if held <= source.max_bytes else b""
        if not length or (blank_line and piece.stop is not None and position >= piece.stop):
            return
        position += length


def json_lines(
    source: SourceSettings, place: StoragePath, stream: BinaryIO, piece: FileRange, skipped: Skipped
) -> Iterator[Raw]:
    """The texts of the JSON objects that begin in the piece, one a line; broken ones are counted."""
    for position, line in lines(source, place, stream, piece, skipped):
        if not line.strip():
            continue
        try:
            text, meta = _json_text(source, line)
        except UnicodeDecodeError:
            yield Raw(position, line)  # the caller says where, or skips it
        except (DataError, ValueError, RecursionError) as error:
            skipped.broken_record(_bad_line(place, position, error, skipped))
        else:
            yield Raw(position, text, meta)


def _json_text(source: SourceSettings, line: bytes) -> tuple[str, Meta]:
    column = "text" if source.kind == "python-docs" else source.column
    record = _parsed(line)
    if isinstance(record, dict) and not source.meta and isinstance(text := record.get(column), str):
        return text, _NO_META
    hint = f"set `column` of source {source.name!r} to the key that holds the text"
    if not isinstance(record, dict):
        raise DataError(f"has no key {column!r}; it has: {type(record).__name__}", hint=hint)
    missing = next((name for name in (column, *source.meta) if name not in record), None)
    if missing is not None:
        hint = hint if missing == column else f"correct `meta` of source {source.name!r}"
        raise DataError(f"has no key {missing!r}; it has: {', '.join(sorted(record))}", hint=hint)
    value = record[column]
    if not isinstance(value, str | None):
        raise DataError(f"has {type(value).__name__}, not text, as {column!r}", hint=hint)
    return value or "", taken_along({name: record[name] for name in source.meta}) if source.meta else {}


def _parsed(line: bytes) -> Any:
    # json.loads first looks which Unicode it is, and which settings it was given: a third of its time on short lines.
    if line.startswith(b"{") and line[1:2] != b"\0":
        return _DECODER.decode(line.decode("utf-8", "surrogatepass"))
    return json.loads(line)


def _bad_line(place: StoragePath, position: int, error: Exception, skipped: Skipped) -> DataError:
    kept = len(skipped.examples.get(BROKEN_RECORD, ()))
    # Counting lines reads the file up to here: only for the few that a person will see.
    where = f"line {_line_number(place, position)}" if kept < EXAMPLES else f"byte {position}"
    if isinstance(error, DataError):
        return DataError(f"{place.url} {where} {error.message}", hint=error.hint)
    return DataError(
        f"{place.url} {where} is not JSON: {error}",
        hint="each line must be one JSON object; correct or remove this line",
    )


def _line_number(place: StoragePath, position: int) -> int:
    """The line that begins at this byte, counted from 1; only errors ask, so reading the file again is no matter."""
    number, left = 1, position
    with opened(place) as stream:
        while left > 0 and (data := stream.read(min(left, 1 << 20))):
            number += data.count(b"\n")
            left -= len(data)
    return number
