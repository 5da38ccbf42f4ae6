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

from raylm.errors import DataError
from raylm.storage import Place


def _zstd(stream: Any) -> Any:
    import pyarrow as pa

    # Arrow's own stream has no readline.
    return io.BufferedReader(cast(Any, pa.CompressedInputStream(stream, "zstd")), 1 << 18)


_OPENERS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
COMPRESSED = tuple(_OPENERS)


@contextlib.contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """A stream of the file's content, unpacked by the ending of its name; DataError where it cannot be unpacked."""
    opener = next((opener for ending, opener in _OPENERS.items() if place.name.endswith(ending)), None)
    with place.open_read() as stored:
        if opener is None:
            yield stored
            return
        try:
            with opener(stored) as stream:
                yield stream
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the storage's, which says so itself
            raise DataError(
                f"{place.url} cannot be unpacked: {error}",
                hint=f"fetch it again; it is truncated or no {place.name.rsplit('.', 1)[-1]} file",
            ) from error
