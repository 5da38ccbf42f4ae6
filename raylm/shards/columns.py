"""Optional columns of a dataset beside its tokens: a loss mask, a score per row, features; named, typed, of one shape.

A value belongs to a token or to a row and has the same shape everywhere, so that a column is read without a copy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("tokens", "document_starts", "length")
_DTYPES = ("uint8", "uint16", "uint32", "int32", "int64", "float32", "float64")


@dataclass(frozen=True)
class Column:
    """One optional column; `shape` is that of one value, which belongs to each token or to each row."""

    name: str
    dtype: str
    per: Literal["token", "row"] = "token"
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise ValueError(f"a column cannot be called {self.name!r}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"column {self.name} has dtype {self.dtype!r}; it can be one of {', '.join(_DTYPES)}")
        if any(size < 1 for size in self.shape):
            raise ValueError(f"column {self.name} has the shape {self.shape}")

    def row_shape(self, sequence_length: int) -> tuple[int, ...]:
        """The shape of one row's values."""
        return (sequence_length, *self.shape) if self.per == "token" else self.shape

    def row_bytes(self, sequence_length: int) -> int:
        """Bytes of one row's values."""
        import numpy as np

        return int(np.prod(self.row_shape(sequence_length), dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def encode(self, values: ArrayLike, length: int, sequence_length: int) -> bytes:
        """One row's values as they are stored; those of a row of `length` tokens are padded with zeros.

        Raises ValueError where the shape is another, or a number does not fit the dtype.
        """
        import numpy as np

        given = np.asarray(values)
        expected = self.row_shape(length)
        if given.shape != expected:
            raise ValueError(f"column {self.name}: values of shape {given.shape}, where {expected} is due")
        stored = given.astype(self.dtype)
        if np.issubdtype(stored.dtype, np.integer) and not np.array_equal(stored, given):
            raise ValueError(f"column {self.name}: a value does not fit {self.dtype}")
        if self.per == "row" or length == sequence_length:
            return stored.tobytes()
        padded = np.zeros(self.row_shape(sequence_length), dtype=self.dtype)
        padded[:length] = stored
        return padded.tobytes()

    def decode(self, buffer: Any, rows: int, sequence_length: int) -> NDArray[Any]:
        """The values of consecutive rows that lie in a buffer, without a copy."""
        import numpy as np

        shape = (rows, *self.row_shape(sequence_length))
        return np.frombuffer(buffer, dtype=self.dtype, count=int(np.prod(shape, dtype=np.int64))).reshape(shape)


@dataclass(frozen=True)
class WantedColumn:
    """A column that somebody reads; `fill` stands for its values in a dataset that lacks it, None: none may lack it.

    What a dataset calls by this name has to have this `per` and `shape`; its dtype is the dataset's own.
    """

    name: str
    per: Literal["token", "row"] = "token"
    shape: tuple[int, ...] = ()
    fill: float | None = None

    def found_in(self, columns: tuple[Column, ...]) -> Column | None:
        """The dataset's column of this name; ValueError where its values are of another kind."""
        for column in columns:
            if column.name == self.name:
                if (column.per, column.shape) != (self.per, self.shape):
                    raise ValueError(
                        f"column {self.name} holds values of shape {column.shape} per {column.per}, "
                        f"where {self.shape} per {self.per} is due"
                    )
                return column
        return None
