"""Reads a block's rows out of its dataset's shards, in a thread or in a Ray Data task; knows nothing of Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raylm.errors import DataError
from raylm.shards import Column, DatasetManifest, Rows, Shard, WantedColumn, read_rows
from raylm.storage import StoragePath
from raylm.stream.lanes import RowRange
from raylm.stream.mixture import Ints

# A dataset that is smaller than this is read once and kept: its epochs are short, and its shards would be opened
# again and again for a few rows.
KEPT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Dataset:
    """One folder of shards in the mixture; `weight_schedule`: (step, weight) changes to come.

    columns: those of the optional ones that are read.
    """

    folder: StoragePath
    manifest: DatasetManifest
    weight: float = 1.0
    weight_schedule: tuple[tuple[int, float], ...] = ()
    columns: tuple[Column, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory, before a batch makes int64 of its tokens."""
        length = self.manifest.sequence_length
        columns = sum(column.row_bytes(length) for column in self.columns)
        return length * np.dtype(self.manifest.dtype).itemsize + columns


def reading(datasets: Sequence[Dataset], wanted: Sequence[WantedColumn]) -> tuple[Dataset, ...]:
    """The datasets to train on, with the wanted columns to be read; a DataError where one has no rows or lacks one."""
    for dataset in datasets:
        if not dataset.manifest.train_rows:
            raise DataError(
                f"{dataset.folder.url} has no rows to train on: all of its documents are held out",
                hint="train on another dataset, and evaluate on this one with `raylm evaluate RUN --data`",
            )
    return with_columns(datasets, wanted)


def with_columns(datasets: Sequence[Dataset], wanted: Sequence[WantedColumn]) -> tuple[Dataset, ...]:
    """The datasets with the wanted columns to be read; a DataError where one lacks a column or holds another kind."""
    return tuple(replace(dataset, columns=tuple(_found(dataset, wanted))) for dataset in datasets)


def _found(dataset: Dataset, wanted: Sequence[WantedColumn]) -> Iterator[Column]:
    there = dataset.manifest.columns
    for one in wanted:
        try:
            column = one.found_in(there)
        except ValueError as error:
            raise DataError(f"{dataset.folder.url}: {error}", hint="prepare the data for this objective") from error
        if column is not None:
            yield column
        elif one.fill is None:
            names = ", ".join(column.name for column in there) or "none"
            raise DataError(
                f"the objective needs the column {one.name!r}, which {dataset.folder.url} lacks (its columns: {names})",
                hint="prepare data that holds it, or choose another objective",
            )


class Reader:
    """Reads blocks of several datasets; safe to use from many threads."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = tuple(datasets)
        self._small = [dataset.manifest.train_rows * dataset.row_bytes <= KEPT_BYTES for dataset in datasets]
        self._kept: dict[tuple[int, int], Rows] = {}
        self._lock = threading.Lock()

    def read(self, dataset: int, row_ranges: Sequence[RowRange], order: Ints) -> Rows:
        """The rows of `row_ranges`, rearranged by `order`."""
        described = self._datasets[dataset]
        count, length = len(order), described.manifest.sequence_length
        # Each part is copied once, straight to where its rows belong.
        places = np.empty_like(order)
        places[order] = np.arange(count)
        tokens = np.empty((count, length), dtype=described.manifest.dtype)
        lengths = np.empty(count, dtype=np.int32)
        columns = {
            column.name: np.empty((count, *column.row_shape(length)), dtype=column.dtype)
            for column in described.columns
        }
        starts: list[NDArray[np.int32]] = []
        for row_range in row_ranges:
            part = self._part(dataset, row_range)
            to = places[len(starts) : len(starts) + len(part.tokens)]
            tokens[to] = part.tokens
            lengths[to] = part.lengths
            for name, values in columns.items():
                values[to] = part.columns[name]
            starts.extend(part.document_starts)
        return Rows(tokens, tuple(starts[place] for place in order.tolist()), lengths, columns)

    def _part(self, dataset: int, row_range: RowRange) -> Rows:
        described = self._datasets[dataset]
        shard = described.manifest.train[row_range.shard]
        if not self._small[dataset]:
            return read_checked(described, shard, row_range.start, row_range.stop)
        with self._lock:
            key = (dataset, row_range.shard)
            if key not in self._kept:
                self._kept[key] = read_checked(described, shard, 0, shard.rows)
            whole = self._kept[key]
        return cut(whole, slice(row_range.start, row_range.stop))


def cut(rows: Rows, part: slice) -> Rows:
    """Some of the rows, without a copy."""
    columns = {name: values[part] for name, values in rows.columns.items()}
    return Rows(rows.tokens[part], rows.document_starts[part], rows.lengths[part], columns)


def read_checked(dataset: Dataset, shard: Shard, start: int, stop: int) -> Rows:
    """Rows of a shard whose tokens are all in the vocabulary: an index beyond it would take the worker down later."""
    rows = read_rows(dataset.folder, shard, start, stop, dataset.manifest, dataset.columns)
    largest = int(rows.tokens.max(initial=0))
    if largest >= dataset.manifest.vocab_size:
        raise DataError(
            f"{(dataset.folder / shard.path).url} holds token {largest}, and the vocabulary ends at "
            f"{dataset.manifest.vocab_size - 1}",
            hint="the shard is not the one that was prepared; restore it, or prepare the data again",
        )
    return rows


def check_agreement(datasets: Sequence[Dataset]) -> None:
    """Raise a DataError unless all datasets have rows of one length in one vocabulary."""
    first = datasets[0]
    for other in datasets[1:]:
        for name in ("sequence_length", "vocab_size", "tokenizer"):
            here, there = getattr(first.manifest, name), getattr(other.manifest, name)
            if here != there:
                raise DataError(
                    f"datasets differ in {name}: {here} in {first.folder.url}, {there} in {other.folder.url}",
                    hint="prepare all datasets of a mixture with the same tokenizer and prepare.sequence_length",
                )
