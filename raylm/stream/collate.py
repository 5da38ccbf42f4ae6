"""Stored rows in, micro-batches out: tokens widened, labels made, optional columns beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylm.records import IGNORED, MicroBatch
from raylm.shards import Rows, WantedColumn
from raylm.stream.reading import Dataset


@dataclass(frozen=True)
class Part:
    """Rows of one dataset, and where they go in a micro-batch."""

    rows: Rows
    part: slice
    where: NDArray[np.int64]


class Collator:
    """Makes micro-batches of stored rows: wide tokens, labels, and the wanted columns."""

    def __init__(
        self, datasets: Sequence[Dataset], wanted: Sequence[WantedColumn], *, document_attention: bool
    ) -> None:
        self._sequence_length = datasets[0].manifest.sequence_length
        self._document_attention = document_attention
        self._fills = {
            one.name: np.full((1, *_row_shape(one, self._sequence_length)), one.fill or 0, dtype=dtype)
            for one in wanted
            if (dtype := _dtype_of(one.name, datasets)) is not None
        }

    def together(
        self, lane: int, rows: Rows, part: slice, ids: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> MicroBatch:
        """A micro-batch of rows of one dataset that lie together."""
        tokens = rows.tokens[part].astype(np.int64)
        starts = rows.document_starts[part]
        labels = self._labels(tokens, rows.lengths[part], starts)
        columns = {name: np.array(rows.columns[name][part]) for name in self._fills}
        return MicroBatch(lane, tokens, labels, starts, ids, epochs, columns)

    def gathered(
        self, lane: int, parts: Iterable[Part], ids: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> MicroBatch:
        """A micro-batch of rows from anywhere."""
        count = len(ids)
        tokens = np.empty((count, self._sequence_length), dtype=np.int64)
        lengths = np.empty(count, dtype=np.int32)
        starts: list[NDArray[np.int32]] = [_NO_STARTS] * count
        columns: dict[str, NDArray[Any]] = {name: np.repeat(fill, count, axis=0) for name, fill in self._fills.items()}
        for one in parts:
            rows, part, where = one.rows, one.part, one.where
            tokens[where] = rows.tokens[part]
            lengths[where] = rows.lengths[part]
            for place, row in zip(where.tolist(), rows.document_starts[part], strict=True):
                starts[place] = row
            for name, values in rows.columns.items():
                columns[name][where] = values[part]
        return MicroBatch(lane, tokens, self._labels(tokens, lengths, starts), tuple(starts), ids, epochs, columns)

    def _labels(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], starts: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.int64]:
        return _labels(tokens, lengths, starts if self._document_attention else None)


_NO_STARTS = np.zeros(1, dtype=np.int32)


def _row_shape(wanted: WantedColumn, sequence_length: int) -> tuple[int, ...]:
    return (sequence_length, *wanted.shape) if wanted.per == "token" else wanted.shape


def _dtype_of(name: str, datasets: Sequence[Dataset]) -> np.dtype[Any] | None:
    """The type that holds the column of every dataset that has it; None where none has."""
    kinds = [np.dtype(column.dtype) for dataset in datasets for column in dataset.columns if column.name == name]
    return np.result_type(*kinds) if kinds else None


def _labels(
    tokens: NDArray[np.int64], lengths: NDArray[np.int32], starts: Sequence[NDArray[np.int32]] | None
) -> NDArray[np.int64]:
    """What is trained on: not the padding and, where documents do not see each other, no document's first token.

    The same array as `tokens` where nothing is left out.
    """
    if starts is None and lengths.min() == tokens.shape[1]:
        return tokens
    short = np.flatnonzero(lengths < tokens.shape[1]).tolist()
    labels = tokens.copy()
    if starts is not None:
        for row, firsts in enumerate(starts):
            labels[row, firsts] = IGNORED
    for row in short:
        labels[row, lengths[row] :] = IGNORED
    return labels
