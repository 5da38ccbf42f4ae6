"""Decisions to drop documents, or parts of them: written by a barrier's resolving tasks, read by each unit.

A file of them is sorted by unit, so that a unit reads little more than its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from raylm.prep.operators.record import OperatorRecord
from raylm.records import Document
from raylm.storage import StoragePath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FOUND = "found"
_GROUP_ROWS = 1 << 16
COLUMNS = ("unit", "document", "part", "first_unit", "first_document")


def write_decisions(folder: StoragePath, number: int, columns: dict[str, NDArray[np.int64]]) -> None:
    """What resolving task `number` decided: rows of COLUMNS, of which the last two say what is kept instead."""
    import numpy as np
    import pyarrow as pa

    order = np.lexsort([columns[name] for name in reversed(COLUMNS)])
    table = pa.table({name: pa.array(columns[name][order]) for name in COLUMNS})
    write_table(folder / _FOUND / f"{number:06d}.parquet", table)


def read_decisions(folder: StoragePath, unit: int) -> dict[int, dict[int, tuple[int, int]]]:
    """document → part → (unit, document) that is kept instead, of what is to be dropped in this unit."""
    drops: dict[int, dict[int, tuple[int, int]]] = {}
    for path in (folder / _FOUND).list():
        table = read_table(path, filters=[("unit", "=", unit)])
        for document, part, *first in zip(*(table[name].to_pylist() for name in COLUMNS[1:]), strict=True):
            drops.setdefault(document, {})[part] = (first[0], first[1])
    return drops


def without_dropped(
    documents: Iterable[Document], folder: StoragePath, unit: int, record: OperatorRecord, reason: str
) -> Iterator[Document]:
    """The unit's documents but those that a decision drops whole; examples say what is kept instead."""
    drops = read_decisions(folder, unit)
    for number, document in enumerate(documents):
        record.take_in(document)
        if number in drops:
            ((first_unit, first_document),) = drops[number].values()
            record.drop(reason, document, f"kept: document {first_document} of unit {first_unit}")
        else:
            record.let_out(document)
            yield document


def write_table(path: StoragePath, table: Any) -> None:
    """A table as a Parquet file that is there whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open_write() as stream:
        pq.write_table(table, pa.PythonFile(stream, mode="w"), compression="zstd", row_group_size=_GROUP_ROWS)


def read_table(path: StoragePath, columns: Iterable[str] | None = None, filters: Any = None) -> Any:
    """A table, or the rows of it that pass `filters`; row groups that cannot hold any are not read."""
    import pyarrow.parquet as pq

    with path.open_read() as stream:
        # A task is promised one CPU; and Arrow's threads now and then abort a process that ends soon after.
        return pq.read_table(
            stream, columns=None if columns is None else list(columns), filters=filters, use_threads=False
        )


def row_count(path: StoragePath) -> int:
    """The rows of a Parquet file, from its footer."""
    import pyarrow.parquet as pq

    with path.open_read() as stream:
        return int(pq.read_metadata(stream).num_rows)
