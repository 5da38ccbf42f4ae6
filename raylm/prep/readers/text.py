"""Text files: a document is a file, a line, or a block between blank lines.

A range owns the lines and blocks that begin in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Literal, TypeVar

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.prep.ranges import Part, cut_at_lines
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind
from raylm.rows.binary import refuse_binary
from raylm.rows.lines import next_line, seek_line
from raylm.storage import StoragePath

Files = TypeVar("Files", bound=FileSourceSettings)


class TextSource(FileSourceSettings):
    """Plain text."""

    kind: Literal["text"] = Field("text", description="How files are read.")
    document: Literal["file", "line", "block"] = Field(
        "file", description="A document is a file, a line, or a block between blank lines."
    )


def read(reading: Reading[TextSource]) -> Iterator[Raw]:
    """The texts of a file, as the source cuts it."""
    with reading.open() as stream:
        refuse_binary(reading.path, stream)
        if reading.source.document == "file":
            yield from whole_file(reading, stream)
        elif reading.source.document == "line":
            yield from single_lines(reading, stream)
        else:
            yield from blocks(reading, stream)


def whole_file(reading: Reading[Files], stream: BinaryIO) -> Iterator[Raw]:
    """The file as one text, unless it is too large."""
    max_bytes = reading.source.max_bytes
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        reading.skip("too_large", 0, f"more than {max_bytes} bytes")
    else:
        yield Raw(0, content)


def single_lines(reading: Reading[TextSource], stream: BinaryIO) -> Iterator[Raw]:
    """Each line that begins in the range as a text of its own."""
    position, stop = seek_line(stream, reading.range.start), reading.range.stop
    while stop is None or position < stop:
        line, length = next_line(stream, reading.source.max_bytes)
        if not length:
            return
        if line:
            yield Raw(position, line.rstrip(b"\r\n"))
        else:
            reading.skip("too_large", position, f"a line of {length} bytes")
        position += length


def blocks(reading: Reading[TextSource], stream: BinaryIO) -> Iterator[Raw]:
    """Paragraphs between blank lines. A range's part begins after the first blank line that begins in or after it.

    The rule only looks at the file and the cut, so that the range before ends exactly where this one begins.
    """
    start, stop, max_bytes = reading.range.start, reading.range.stop, reading.source.max_bytes
    position = seek_line(stream, start)
    if start:
        blank = -1
        while blank < 0:
            line, length = next_line(stream, max_bytes)
            if not length:
                break
            blank = position if line and not line.strip() else -1
            position += length
        if stop is not None and blank >= stop:
            return  # one block covers the whole range; it belongs to an earlier one
    begin, block, held = position, b"", 0
    while True:
        line, length = next_line(stream, max_bytes)
        blank_line = bool(line) and not line.strip()
        if held and (blank_line or not length):
            if held <= max_bytes:
                yield Raw(begin, block.rstrip(b"\r\n"))
            else:
                reading.skip("too_large", begin, f"a block of {held} bytes")
            block, held = b"", 0
        elif length and not blank_line:
            begin = position if not held else begin
            held += length
            block = block + line if held <= max_bytes else b""
        if not length or (blank_line and stop is not None and position >= stop):
            return
        position += length


def _cut(source: TextSource, path: StoragePath, size: int, unit_bytes: int) -> list[Part] | None:
    return None if source.document == "file" else cut_at_lines(path, size, unit_bytes)


SOURCE = SourceKind("text", TextSource, read, "text: a document is a file, a line or a block", cut=_cut)
