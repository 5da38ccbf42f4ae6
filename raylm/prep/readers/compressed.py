"""Files as they are found, plain or compressed: comes in a stored file, leaves a stream of what it holds.

A file that ends too early, or is not of the kind its name says, is an error: nothing is dropped in silence.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from raylm.prep.checks.skipped import BrokenFile
from raylm.storage import StoragePath

_READ_BYTES = 1 << 18


def _zstd(stream: Any) -> Any:
    import pyarrow as pa

    # Arrow's own stream has no readline.
    return io.BufferedReader(cast(Any, pa.CompressedInputStream(stream, "zstd")), _READ_BYTES)


_OPENERS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
COMPRESSED = tuple(_OPENERS)


_ALWAYS_UNPACKED = 64_000_000  # bytes, however small the file is


class Reader(io.RawIOBase):
    """A stream of what a function gives: at most as many bytes as it is asked for, none at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def is_damage(error: Exception) -> bool:
    """Whether a library says with this that bytes are wrong; an OSError with a number is the storage's own."""
    return not isinstance(error, OSError) or error.errno is None


def most_unpacked(place: StoragePath, max_compression_ratio: float) -> int:
    """The bytes that a file may unpack to."""
    return max(int(place.size() * max_compression_ratio), _ALWAYS_UNPACKED)


def _limited(unpacked: Any, most: int, place: StoragePath) -> Reader:
    """What `unpacked` gives, until it is more than `most` bytes."""
    given = 0

    def read(wanted: int) -> bytes:
        nonlocal given
        data: bytes = unpacked.read1(wanted)  # what came before damage, then the damage
        given += len(data)
        if given > most:
            raise BrokenFile(
                f"{place.url} unpacks to more than {most} bytes: a bomb, or damaged",
                hint="raise max_compression_ratio of this source if that is right",
            )
        return data

    return Reader(read)


@contextlib.contextmanager
def opened(place: StoragePath, max_compression_ratio: float | None = None) -> Iterator[BinaryIO]:
    """A stream of the file's content, unpacked by the ending of its name; BrokenFile where it cannot be unpacked.

    max_compression_ratio: unpacked bytes for each stored byte, above which the file counts as broken.
    """
    opener = next((opener for ending, opener in _OPENERS.items() if place.name.endswith(ending)), None)
    with place.open_read() as stored:
        if opener is None:
            # What fsspec opens has no readline of a limited length, and no peek.
            yield stored if isinstance(stored, io.BufferedReader) else io.BufferedReader(cast(Any, stored), _READ_BYTES)
            return
        try:
            with opener(stored) as stream:
                if max_compression_ratio is None:
                    yield stream
                else:
                    most = most_unpacked(place, max_compression_ratio)
                    yield cast(BinaryIO, io.BufferedReader(_limited(stream, most, place), _READ_BYTES))
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if not is_damage(error):
                raise
            raise BrokenFile(
                f"{place.url} cannot be unpacked: {error}",
                hint=f"fetch it again; it is truncated or no {place.name.rsplit('.', 1)[-1]} file",
            ) from error
