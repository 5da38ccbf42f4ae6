"""What travels between a reader and its Ray Data tasks: descriptors of blocks one way, their rows the other."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from raylm.errors import RaylmError
from raylm.shards import Rows
from raylm.stream.lanes import Block, RowRange
from raylm.stream.reading import Dataset, Reader

if TYPE_CHECKING:
    import pyarrow as pa

_PREFIX = "column:"  # of an optional column's name in a task's answer
_RANGE_NUMBERS = 3  # numbers that describe a RowRange


def described_blocks(blocks: Sequence[Block]) -> pa.Table:
    """What a task needs to know of its blocks, a row each."""
    import pyarrow as pa

    def column(values: Callable[[Block], np.ndarray[Any, Any]]) -> pa.Array:
        return pa.array([values(block).astype(np.int64).tobytes() for block in blocks], pa.binary())

    return pa.table(
        {
            "dataset": pa.array([block.dataset for block in blocks], pa.int64()),
            "row_ranges": column(lambda block: np.array([(p.shard, p.start, p.stop) for p in block.row_ranges])),
            "order": column(lambda block: block.order),
        }
    )


def read_blocks(table: pa.Table, *, datasets: Any) -> pa.Table:
    """A read task: descriptors in, rows out; an error for people travels as a row, and so arrives once and whole."""
    import ray

    known: tuple[Dataset, ...] = ray.get(datasets)
    reader = Reader(known)
    described = list(zip(*(table.column(name).to_pylist() for name in ("dataset", "row_ranges", "order")), strict=True))
    if all(dataset.folder.is_local for dataset in known) or len(described) < 2:
        read = [_read_one(reader, *block) for block in described]
    else:
        with ThreadPoolExecutor(min(8, len(described))) as pool:
            read = list(pool.map(lambda block: _read_one(reader, *block), described))
    names = sorted({column.name for dataset in known for column in dataset.columns})
    return _packed([dataset for dataset, _, _ in described], read, names)


def _read_one(reader: Reader, dataset: int, row_ranges: bytes, order: bytes) -> Rows | RaylmError:
    numbers = np.frombuffer(row_ranges, dtype=np.int64).reshape(-1, _RANGE_NUMBERS).tolist()
    try:
        return reader.read(
            dataset, [RowRange(*row_range) for row_range in numbers], np.frombuffer(order, dtype=np.int64)
        )
    except RaylmError as error:
        return error


def _packed(datasets: list[int], read: list[Rows | RaylmError], names: list[str]) -> pa.Table:
    import pyarrow as pa

    def column(values: Callable[[Rows], bytes | memoryview]) -> pa.Array:
        return pa.array([b"" if isinstance(rows, RaylmError) else values(rows) for rows in read], pa.large_binary())

    def optional(name: str) -> pa.Array:
        return column(lambda rows: rows.columns[name].tobytes() if name in rows.columns else b"")

    return pa.table(
        {
            "dataset": pa.array(datasets, pa.int64()),
            "tokens": column(lambda rows: rows.tokens.tobytes()),
            "starts": column(lambda rows: np.concatenate(rows.document_starts).astype(np.int32).tobytes()),
            "counts": column(lambda rows: np.array([len(row) for row in rows.document_starts], np.int32).tobytes()),
            "lengths": column(lambda rows: rows.lengths.astype(np.int32).tobytes()),
            **{_PREFIX + name: optional(name) for name in names},
            "error": pa.array(
                [pickle.dumps(rows) if isinstance(rows, RaylmError) else b"" for rows in read], pa.large_binary()
            ),
        }
    )


def rows_in(table: pa.Table, datasets: Sequence[Dataset]) -> Iterator[Rows | RaylmError]:
    """The rows in a task's answer, a block each, or the error that reading the block gave."""
    columns = {name: table.column(name) for name in table.column_names}
    for number in range(table.num_rows):
        buffers = {name: column[number].as_buffer() for name, column in columns.items() if name != "dataset"}
        if buffers["error"].size:
            yield pickle.loads(buffers["error"])
            continue
        manifest = datasets[columns["dataset"][number].as_py()].manifest
        tokens = np.frombuffer(buffers["tokens"], dtype=manifest.dtype).reshape(-1, manifest.sequence_length)
        starts = np.frombuffer(buffers["starts"], dtype=np.int32)
        ends = np.cumsum(np.frombuffer(buffers["counts"], dtype=np.int32)).tolist()
        rows = tuple(starts[begin:end] for begin, end in itertools.pairwise([0, *ends]))
        described = datasets[columns["dataset"][number].as_py()]
        more = {
            column.name: column.decode(buffers[_PREFIX + column.name], len(tokens), manifest.sequence_length)
            for column in described.columns
        }
        yield Rows(tokens, rows, np.frombuffer(buffers["lengths"], dtype=np.int32), more)
