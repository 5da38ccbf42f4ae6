"""Writing one shard: rows of tokens come in, a Parquet file that is visible whole or not at all leaves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from raylm.errors import RaylmError
from raylm.shards.manifest import FORMAT, RowFormat, Shard
from raylm.storage import StoragePath
from raylm.storage.errors import in_words

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

log = logging.getLogger(__name__)

_BUFFERED_GROUPS = 16  # row groups handed to Parquet at once
_NO_COLUMNS: Mapping[str, ArrayLike] = MappingProxyType({})


class ShardWriter:
    """Writes one shard; as a context manager it leaves nothing behind when its block raises.

    `path` must lie under the folder of the manifest; `name` is what the Shard record calls the file (default: the
    last part of its path).
    """

    def __init__(self, path: StoragePath, rows: RowFormat, *, name: str | None = None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._name = name or path.name
        self._format = rows
        self._rows = 0
        self._pending: list[tuple[Any, ...]] = []  # tokens, document starts, length, then the optional columns
        self._schema = _schema(rows)
        with contextlib.ExitStack() as opening:
            self._hashed = _Hashed(opening.enter_context(path.open_write()), path.url)
            self._parquet = pq.ParquetWriter(
                pa.PythonFile(self._hashed, mode="w"),
                self._schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            )
            self._stack = opening.pop_all()
        self._shard: Shard | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon(kind, error, trace)
        else:
            self.close()

    def add(
        self,
        tokens: NDArray[Any],
        document_starts: NDArray[Any] | Sequence[int],
        columns: Mapping[str, ArrayLike] = _NO_COLUMNS,
    ) -> None:
        """Append one row; a row shorter than the sequence is padded with the end-of-text token.

        `columns`: a value for each of the dataset's optional columns, those per token as long as `tokens`.
        """
        import numpy as np

        rows, length = self._format, len(tokens)
        if not 0 < length <= rows.sequence_length:
            raise ValueError(f"a row of {length} tokens does not fit rows of {rows.sequence_length}")
        if len(columns) != len(rows.columns) or any(column.name not in columns for column in rows.columns):
            due = ", ".join(column.name for column in rows.columns) or "none"
            raise ValueError(f"a row has the columns {', '.join(columns) or 'none'}; this dataset's are {due}")
        row = np.full(rows.sequence_length, rows.eos_id, dtype=rows.dtype)
        row[:length] = tokens
        more = [column.encode(columns[column.name], length, rows.sequence_length) for column in rows.columns]
        self._pending.append((row.tobytes(), np.asarray(document_starts, dtype=np.int32), length, *more))
        if len(self._pending) == rows.group_rows * _BUFFERED_GROUPS:
            self._flush()

    def close(self) -> Shard:
        """Finish the file and make it visible; what was written."""
        if self._shard is not None:
            return self._shard
        with contextlib.ExitStack() as attempt:
            attempt.push(self._abandon)
            self._flush()
            self._parquet.close()
        self._stack.close()
        self._shard = Shard(self._name, self._rows, self._hashed.count, self._hashed.digest.hexdigest())
        return self._shard

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        arrays = [
            pa.array(values, type=field.type)
            for values, field in zip(zip(*self._pending, strict=True), self._schema, strict=True)
        ]
        table = pa.table(arrays, schema=self._schema)
        self._parquet.write_table(table, row_group_size=self._format.group_rows)
        self._rows += len(self._pending)
        self._pending.clear()

    def _abandon(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        # The stream takes the error as its own, so that it gives the file up instead of committing it. Parquet's
        # writer would write its footer when it is collected; let it do so now, into nothing.
        self._hashed.dropped = True
        try:
            self._stack.__exit__(kind, error, trace)
        except (RaylmError, OSError) as second:
            log.warning("what was written of a shard could not be discarded (%s)", second)


def _schema(rows: RowFormat) -> Any:
    import numpy as np
    import pyarrow as pa

    tokens = pa.binary(rows.sequence_length * np.dtype(rows.dtype).itemsize)
    return pa.schema(
        [
            pa.field("tokens", tokens, nullable=False),
            pa.field("document_starts", pa.list_(pa.int32()), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
            *(
                pa.field(column.name, pa.binary(column.row_bytes(rows.sequence_length)), nullable=False)
                for column in rows.columns
            ),
        ],
        metadata={FORMAT: json.dumps(rows.described(), sort_keys=True)},
    )


class _Hashed(io.RawIOBase):
    """Counts and digests what passes on to a stream; what fails there, a full disk too, is a StorageError."""

    def __init__(self, stream: BinaryIO, url: str) -> None:
        self._stream, self._url = stream, url
        self.digest = hashlib.sha256()
        self.count = 0
        self.dropped = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.count

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.count += len(data)
        if not self.dropped:
            with in_words(self._url, "write"):
                self._stream.write(data)
        return len(data)
