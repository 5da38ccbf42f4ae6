"""What every kind of file has in common for the reader of rows: which part of it, which columns, which limits."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from raylm.errors import DataError
from raylm.rows.bad import BadRow, MissingColumn, OnBadRow, Reason, Unit, refuse
from raylm.rows.compressed import opened
from raylm.storage import StoragePath


class Row(NamedTuple):
    """A record's columns by name, and its place: byte (JSON lines, text), line (CSV), row (tables) or item (JSON)."""

    value: dict[str, Any]
    position: int
    path: StoragePath


@dataclass(frozen=True)
class RowFile:
    """A file of rows, or a range of it, and how it is read.

    columns: those that are wanted, None for all. optional: those that a JSON object may lack, and are null then. start,
    stop: bytes for lines, row groups for Parquet; a row belongs to the range in which it begins. max_bytes: of a line,
    or of a whole JSON file. max_compression_ratio: unpacked bytes for each stored byte, above which the file is broken.
    unit: what positions in it count. delimiter, quote: of CSV; None for what its name says, an empty quote for none.
    """

    path: StoragePath
    columns: tuple[str, ...] | None = None
    optional: frozenset[str] = frozenset()
    start: int = 0
    stop: int | None = None
    max_bytes: int = 64_000_000
    max_compression_ratio: float | None = 250.0
    on_bad: OnBadRow = refuse
    unit: Unit = "byte"
    delimiter: str | None = None
    quote: str | None = None

    def open(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """The file's content, unpacked by the ending of its name."""
        return opened(self.path, self.max_compression_ratio)

    def bad(
        self,
        position: int,
        reason: Reason,
        why: str,
        *,
        hint: str | None = None,
        content: bytes = b"",
        column: str | None = None,
    ) -> None:
        """Report a row that cannot be read."""
        self.on_bad(BadRow(self.path, position, self.unit, reason, why, hint, content, column))

    def find_columns(self, names: list[str]) -> list[str]:
        """The wanted columns of a table with these; MissingColumn when one is missing, DataError when twice there."""
        missing = next((name for name in self.columns or () if name not in names), None)
        if missing is not None:
            raise MissingColumn(
                f"{self.path.url} has no column {missing!r}; it has: {', '.join(names)}",
                column=missing,
                hint="name a column that is there",
            )
        found = names if self.columns is None else list(self.columns)
        twice = next((name for name in found if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(
                f"{self.path.url} has {names.count(twice)} columns {twice!r}; it has: {', '.join(names)}",
                hint="write it again with a name for each column",
            )
        return found
