"""The lines of a stream by the byte they begin at; one that is too long is reported and never held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from raylm.rows.base import Row, RowFile

_READ_BYTES = 1 << 20


def lines(file: RowFile, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the file's range, with their positions."""
    position = seek_line(stream, file.start)
    while file.stop is None or position < file.stop:
        line, length = next_line(stream, file.max_bytes)
        if not length:
            return
        if line:
            yield position, line
        else:
            file.bad(position, "too_large", f"a line of {length} bytes")
        position += length


def next_line(stream: BinaryIO, max_bytes: int) -> tuple[bytes, int]:
    """The next line and its length; b"" in place of one that is longer than allowed. Length 0 at the end."""
    line = stream.readline(max_bytes + 1)
    if len(line) <= max_bytes:
        return line, len(line)
    length = len(line)
    while not line.endswith(b"\n") and (line := stream.readline(_READ_BYTES)):
        length += len(line)
    return b"", length


def seek_line(stream: BinaryIO, start: int) -> int:
    """Go to the first line that begins at `start` or after it; the byte it begins at."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    return start - 1 + next_line(stream, _READ_BYTES)[1]


def text_lines(file: RowFile, stream: BinaryIO) -> Iterator[Row]:
    """Each line as the column `text`, without its end."""
    file.find_columns(["text"])
    for position, line in lines(file, stream):
        try:
            text = line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            file.bad(position, "encoding", not_utf8(error), hint="convert the file to UTF-8", content=line)
        else:
            yield Row({"text": text.removeprefix("\ufeff") if position == 0 else text}, position, file.path)


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong, for a bad row."""
    return f"is not UTF-8: 0x{error.object[error.start]:02x} at its byte {error.start}"
