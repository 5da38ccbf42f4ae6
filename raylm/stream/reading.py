"""A block of rows out of the shards that hold it: what every deliverer does, in a thread or in a Ray Data task.

Comes in: the sources and a block's pieces. Leaves: its rows in the order they are trained on. Knows nothing of Ray.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raylm.errors import DataError
from raylm.shards import Manifest, Rows, Shard, read_rows
from raylm.storage import StoragePath
from raylm.stream.lanes import Piece
from raylm.stream.mixture import Ints

# A source that is smaller than this is read once and kept: its epochs are short, and its shards would be opened
# again and again for a few rows.
KEPT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Dataset:
    """One folder of shards in the mixture; `stages` are (step, weight) changes to come."""

    folder: StoragePath
    manifest: Manifest
    weight: float = 1.0
    stages: tuple[tuple[int, float], ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory, before a batch makes int64 of it."""
        return self.manifest.sequence_length * np.dtype(self.manifest.dtype).itemsize


class Reader:
    """Reads blocks of several sources; safe to use from many threads."""

    def __init__(self, sources: Sequence[Dataset]) -> None:
        self._sources = tuple(sources)
        self._small = [source.manifest.train_rows * source.row_bytes <= KEPT_BYTES for source in sources]
        self._kept: dict[tuple[int, int], Rows] = {}
        self._lock = threading.Lock()

    def read(self, source: int, pieces: Sequence[Piece], order: Ints) -> Rows:
        """The rows of `pieces`, rearranged by `order`."""
        manifest = self._sources[source].manifest
        # Each part is copied once, straight to where its rows belong.
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        tokens = np.empty((len(order), manifest.sequence_length), dtype=manifest.dtype)
        lengths = np.empty(len(order), dtype=np.int32)
        starts: list[NDArray[np.int32]] = []
        for piece in pieces:
            part = self._part(source, piece)
            to = places[len(starts) : len(starts) + len(part.tokens)]
            tokens[to] = part.tokens
            lengths[to] = part.lengths
            starts.extend(part.document_starts)
        return Rows(tokens, tuple(starts[place] for place in order.tolist()), lengths)

    def _part(self, source: int, piece: Piece) -> Rows:
        described = self._sources[source]
        shard = described.manifest.train[piece.shard]
        if not self._small[source]:
            return read_checked(described, shard, piece.start, piece.stop)
        with self._lock:
            key = (source, piece.shard)
            if key not in self._kept:
                self._kept[key] = read_checked(described, shard, 0, shard.rows)
            whole = self._kept[key]
        rows = slice(piece.start, piece.stop)
        return Rows(whole.tokens[rows], whole.document_starts[rows], whole.lengths[rows])


def read_checked(source: Dataset, shard: Shard, start: int, stop: int) -> Rows:
    """Rows of a shard whose tokens are all in the vocabulary: an index beyond it would take the worker down later."""
    rows = read_rows(source.folder, shard, start, stop, source.manifest)
    largest = int(rows.tokens.max(initial=0))
    if largest >= source.manifest.vocab_size:
        raise DataError(
            f"{(source.folder / shard.path).url} holds token {largest}, and the vocabulary ends at "
            f"{source.manifest.vocab_size - 1}",
            hint="the shard is not the one that was prepared; restore it, or prepare the data again",
        )
    return rows


def check_agreement(sources: Sequence[Dataset]) -> None:
    """Raise a DataError unless all sources have rows of one length in one vocabulary."""
    first = sources[0]
    for other in sources[1:]:
        for name in ("sequence_length", "vocab_size", "tokenizer"):
            here, there = getattr(first.manifest, name), getattr(other.manifest, name)
            if here != there:
                raise DataError(
                    f"data sources differ in {name}: {here} in {first.folder.url}, {there} in {other.folder.url}",
                    hint="prepare all sources of a mixture with the same tokenizer and prepare.sequence_length",
                )
