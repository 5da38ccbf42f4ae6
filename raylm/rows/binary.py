"""Binary files that were taken for text.

Bytes below 0x80 are valid UTF-8 whatever they mean, so decoding alone lets archives, models and UTF-16 through.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO, cast

from raylm.rows.compressed import BrokenFile
from raylm.storage import StoragePath

_PEEKED = 4096  # bytes of a file's beginning
_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_KINDS = {
    b"\x1f\x8b": "a gzip file; its name must end in .gz",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"BZh": "a bzip2 file; its name must end in .bz2",
    b"\xfd7zXZ": "an xz file; its name must end in .xz",
    b"\x28\xb5\x2f\xfd": "a zstd file; its name must end in .zst",
    b"%PDF-": "a PDF",
    b"PAR1": "a Parquet file; set kind: parquet",
    b"ARROW1": "an Arrow file; set kind: arrow",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x04\x22\x4d\x18": "an lz4 file; unpack it first",
    b"SQLite format 3": "a SQLite database",
    b"\xff\xfe\0\0": "UTF-32; convert it to UTF-8",
    b"\xff\xfe": "UTF-16; convert it to UTF-8",
    b"\xfe\xff": "UTF-16; convert it to UTF-8",
}


def refuse_binary(path: StoragePath, stream: BinaryIO) -> None:
    """Raise BrokenFile when the file does not begin as text does; the stream stays where it stands, at the start."""
    # Not read: where a packed file is damaged, what comes before the damage is still to be had.
    begins: bytes = cast(io.BufferedReader, stream).peek(_PEEKED)[:_PEEKED]
    kind = next((kind for magic, kind in _KINDS.items() if begins.startswith(magic)), None)
    ending = (kind or "").rpartition(" ")[2]
    if kind is not None and ending.startswith(".") and path.name.endswith(ending):
        kind = f"{kind.partition(';')[0]} inside another one; unpack it once"
    if kind is None and begins[257:262] == b"ustar":
        kind = "a tar archive; unpack it first"
    # A zero here and there is its own record's flaw; UTF-16 and other binary files have many.
    many = b"\0\0" in begins or begins.count(0) > len(begins) / 100 + 1
    if kind is None and many and not _is_mostly_lines(begins):
        kind = f"binary or UTF-16: byte {begins.index(0)} is zero"
    if kind is not None:
        raise BrokenFile(f"{path.url} is no UTF-8 text but {kind}", hint="take it out of the glob, or convert it")


def _is_mostly_lines(begins: bytes) -> bool:
    """Whether most of a file's beginning is lines of text, with zeros in others."""
    whole = [line for line in begins.splitlines() if line and b"\0" not in line and not _CONTROL.search(line)]
    valid = sum(len(line) for line in whole if len(line.decode(errors="ignore").encode()) >= len(line) - 3)
    return valid > len(begins) / 2
