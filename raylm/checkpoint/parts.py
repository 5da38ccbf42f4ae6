"""One rank's part of a checkpoint as a safetensors file: where each chunk goes, and the checksums of its blocks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from raylm.checkpoint.chunks import Chunk
from raylm.checkpoint.manifest import BLOCK_BYTES, DTYPES, VERSION, StoredChunk, element_bytes

# One write to the stream; a multiple of it is what object stores take as a part.
WRITE_BYTES = 8 << 20


def arrange(chunks: Sequence[Chunk]) -> tuple[tuple[StoredChunk, ...], bytes, int]:
    """Where each chunk goes, the safetensors header, and the bytes of the file.

    Wide elements first, so that each is aligned; then by kind, so that weights alone are one contiguous read.
    """
    order = sorted(chunks, key=lambda one: (-element_bytes(one.dtype), one.kind, one.name, one.start))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "raylm": str(VERSION)}}
    at = 0
    for chunk in order:
        stop = at + chunk.length * element_bytes(chunk.dtype)
        key = f"{chunk.kind}/{chunk.name}[{chunk.start}:{chunk.stop}]"
        if key in entries:
            raise AssertionError(f"{key} is held twice")
        entries[key] = {"dtype": DTYPES[chunk.dtype][0], "shape": [chunk.length], "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    header = len(text).to_bytes(8, "little") + text
    begins = len(header)
    stored = []
    for chunk in order:
        stored.append(StoredChunk(chunk, begins))
        begins = stored[-1].stop
    return tuple(stored), header, begins


class Checksums:
    """CRC-32 of each block of a stream that passes in pieces of any size."""

    def __init__(self) -> None:
        self.finished: list[int] = []
        self._crc = 0
        self._filled = 0

    def add(self, piece: memoryview) -> None:
        """The next bytes of the stream."""
        while piece.nbytes:
            taken = piece[: BLOCK_BYTES - self._filled]
            self._crc = zlib.crc32(taken, self._crc)
            self._filled += taken.nbytes
            piece = piece[taken.nbytes :]
            if self._filled == BLOCK_BYTES:
                self._end_block()

    def close(self) -> tuple[int, ...]:
        """All of them, the last of a shorter block."""
        if self._filled:
            self._end_block()
        return tuple(self.finished)

    def _end_block(self) -> None:
        self.finished.append(self._crc)
        self._crc, self._filled = 0, 0


def blocks_of(header: bytes, staged: memoryview, sums: Checksums) -> Iterator[memoryview]:
    """Header and staged bytes, cut into writes, each counted into `sums` as it passes."""
    for whole in (memoryview(header), staged):
        for start in range(0, whole.nbytes, WRITE_BYTES):
            piece = whole[start : start + WRITE_BYTES]
            sums.add(piece)
            yield piece
