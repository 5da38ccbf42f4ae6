"""Rows and files that cannot be read: what is wrong, where, and how much of it is allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from raylm.errors import DataError
from raylm.rows.compressed import opened
from raylm.storage import StoragePath

Unit: TypeAlias = Literal["byte", "line", "row", "item"]
Reason: TypeAlias = Literal["too_large", "encoding", "broken_record"]
EXAMPLES = 5  # errors that BadRows keeps


class MissingColumn(DataError):
    """A table, or a record, has no column of a name that is wanted."""

    def __init__(self, message: str, *, column: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.column = column


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read.

    position: in the unit that its kind of file counts in. content: its bytes, where they are not UTF-8. column: the one
    that is missing, if that is what is wrong.
    """

    path: StoragePath
    position: int
    unit: Unit
    reason: Reason
    why: str
    hint: str | None = None
    content: bytes = b""
    column: str | None = None

    def place(self, *, exact: bool = True) -> str:
        """Where it is in the file. exact: the line instead of the byte, for which the file is read up to there."""
        if self.unit == "byte" and exact:
            return f"line {line_number(self.path, self.position)}"
        return f"{self.unit} {self.position}"

    def error(self, *, exact: bool = True) -> DataError:
        """The error that says so."""
        message = f"{self.path.url} {self.place(exact=exact)} {self.why}"
        if self.column is not None:
            return MissingColumn(message, column=self.column, hint=self.hint)
        return DataError(message, hint=self.hint)


OnBadRow: TypeAlias = Callable[[BadRow], None]


def refuse(bad: BadRow) -> None:
    """Raise the row's error: no row may be bad."""
    raise bad.error()


@dataclass
class BadRows:
    """Counts bad rows, keeps the first few errors, and raises the first when their share is above `max_share`.

    Give it to read_rows as `on_bad`, and call `check` with the number of good rows at the end.
    """

    max_share: float
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[DataError] = field(default_factory=list)

    def __call__(self, bad: BadRow) -> None:
        """Count one more."""
        self.reasons[bad.reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(bad.error())

    def check(self, good: int) -> None:
        """Raise a DataError when more than the allowed share of all rows is bad."""
        bad = self.reasons.total()
        if bad > self.max_share * (good + bad):
            first = self.examples[0]
            raise DataError(
                f"{first.message} ({bad} of {good + bad} rows are bad; {self.max_share:g} of them may be)",
                hint=first.hint,
            ) from first


def line_number(path: StoragePath, position: int) -> int:
    """The line that begins at this byte of the unpacked file, counted from 1; reads the file up to there."""
    number, left = 1, position
    with opened(path) as stream:
        while left > 0 and (data := stream.read(min(left, 1 << 20))):
            number += data.count(b"\n")
            left -= len(data)
    return number
