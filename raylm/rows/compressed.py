"""Stored files as streams of what they hold, plain or compressed.

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

from raylm.errors import DataError
from raylm.storage import StoragePath

_READ_BYTES = 1 << 18
_RATIO_BYTES = 8 << 20


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


class BrokenFile(DataError):
    """A file cannot be read, or not to its end. What came before the damage is kept."""


class FunctionStream(io.RawIOBase):
    """A stream of what a function returns: at most as many bytes as it is asked for, none at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def unpacked_ratio(path: StoragePath) -> float:
    """Bytes that a compressed file unpacks to for each stored one, by its first megabytes; 1 for what is damaged."""
    opener = next(opener for ending, opener in _OPENERS.items() if path.name.endswith(ending))
    unpacked = 0
    with path.open_read() as stored:
        try:
            with opener(stored) as stream:
                while unpacked < _RATIO_BYTES and (data := stream.read(_READ_BYTES)):
                    unpacked += len(data)
                return unpacked / max(1, stored.tell())
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if not is_damage(error):
                raise
            return 1.0


def is_damage(error: Exception) -> bool:
    """Whether a library says with this that bytes are wrong; an OSError with a number is the storage's own."""
    return not isinstance(error, OSError) or error.errno is None


def max_unpacked(path: StoragePath, max_compression_ratio: float) -> int:
    """The bytes that a file may unpack to."""
    return max(int(path.size() * max_compression_ratio), _ALWAYS_UNPACKED)


def _limited(unpacked: Any, max_bytes: int, path: StoragePath) -> FunctionStream:
    """What `unpacked` holds; BrokenFile when that is more than `max_bytes`."""
    given = 0

    def read(wanted: int) -> bytes:
        nonlocal given
        data: bytes = unpacked.read1(wanted)  # what came before damage, then the damage
        given += len(data)
        if given > max_bytes:
            raise BrokenFile(
                f"{path.url} unpacks to more than {max_bytes} bytes: a bomb, or damaged",
                hint="raise max_compression_ratio of this source if that is right",
            )
        return data

    return FunctionStream(read)


@contextlib.contextmanager
def opened(path: StoragePath, max_compression_ratio: float | None = None) -> Iterator[BinaryIO]:
    """A stream of the file's content, unpacked by the ending of its name; BrokenFile where it cannot be unpacked.

    max_compression_ratio: unpacked bytes for each stored byte, above which the file counts as broken.
    """
    opener = next((opener for ending, opener in _OPENERS.items() if path.name.endswith(ending)), None)
    with path.open_read() as stored:
        if opener is None:
            # What fsspec opens has no readline of a limited length, and no peek.
            yield stored if isinstance(stored, io.BufferedReader) else io.BufferedReader(cast(Any, stored), _READ_BYTES)
            return
        try:
            with opener(stored) as stream:
                if max_compression_ratio is None:
                    yield stream
                else:
                    max_bytes = max_unpacked(path, max_compression_ratio)
                    yield cast(BinaryIO, io.BufferedReader(_limited(stream, max_bytes, path), _READ_BYTES))
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if not is_damage(error):
                raise
            hint = f"fetch it again; it is truncated or no {path.name.rsplit('.', 1)[-1]} file"
            if "too much memory" in str(error):  # zstd --long, with a window that its users have to ask for
                hint = "pack it anew with a smaller window: zstd -d --long=31 -c FILE | zstd -o NEW"
            raise BrokenFile(f"{path.url} cannot be unpacked: {error}", hint=hint) from error
