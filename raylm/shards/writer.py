"""Writing one shard: rows of tokens come in, a Parquet file that is visible whole or not at all leaves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from raylm.shards.manifest import FORMAT, GROUP_ROWS, VERSION, Shard
from raylm.storage import StoragePath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BUFFERED_GROUPS = 16  # row groups handed to Parquet at once


class ShardWriter:
    """Writes one shard; as a context manager it leaves nothing behind when its block raises.

    `place` must lie under the folder of the manifest; `path` is what the Shard record calls the file (default: its
    name).
    """

    def __init__(
        self,
        place: StoragePath,
        sequence_length: int,
        dtype: str,
        group_rows: int = GROUP_ROWS,
        *,
        path: str | None = None,
        tokenizer: str = "",
        eos_id: int = 0,
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._place = place
        self._path = path or place.name
        self._sequence_length = sequence_length
        self._dtype = dtype
        self._group_rows = group_rows
        self._eos_id = eos_id
        self._rows = 0
        self._pending: list[tuple[bytes, NDArray[np.int32], int]] = []
        self._schema = _schema(sequence_length, dtype, group_rows, tokenizer)
        self._stack = contextlib.ExitStack()
        self._hashed = _Hashed(self._stack.enter_context(place.open_write()))
        try:
            self._parquet = pq.ParquetWriter(
                pa.PythonFile(self._hashed, mode="w"),
                self._schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            )
        except BaseException as error:
            self._abandon(error)
            raise
        self._shard: Shard | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._abandon(error)
        else:
            self.close()

    def add(self, tokens: NDArray[Any], document_starts: NDArray[Any] | Sequence[int]) -> None:
        """Append one row; a row shorter than the sequence is padded with the end-of-text token."""
        import numpy as np

        length = len(tokens)
        if not 0 < length <= self._sequence_length:
            raise ValueError(f"a row of {length} tokens does not fit rows of {self._sequence_length}")
        row = np.full(self._sequence_length, self._eos_id, dtype=self._dtype)
        row[:length] = tokens
        self._pending.append((row.tobytes(), np.asarray(document_starts, dtype=np.int32), length))
        if len(self._pending) == self._group_rows * _BUFFERED_GROUPS:
            self._flush()

    def close(self) -> Shard:
        """Finish the file and make it visible; what was written."""
        if self._shard is not None:
            return self._shard
        try:
            self._flush()
            self._parquet.close()
        except BaseException as error:
            self._abandon(error)
            raise
        self._stack.close()
        self._shard = Shard(self._path, self._rows, self._hashed.count, self._hashed.digest.hexdigest())
        return self._shard

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        rows, starts, lengths = zip(*self._pending, strict=True)
        width = self._schema.field("tokens").type
        table = pa.table(
            [
                pa.array(rows, type=width),
                pa.array(starts, type=pa.list_(pa.int32())),
                pa.array(lengths, type=pa.int32()),
            ],
            schema=self._schema,
        )
        self._parquet.write_table(table, row_group_size=self._group_rows)
        self._rows += len(rows)
        self._pending.clear()

    def _abandon(self, error: BaseException) -> None:
        # The stream takes the error as its own, so that it gives the file up instead of committing it. Parquet's
        # writer would write its footer when it is collected; let it do so now, into nothing.
        self._hashed.dropped = True
        with contextlib.suppress(BaseException):
            self._stack.__exit__(type(error), error, error.__traceback__)


def _schema(sequence_length: int, dtype: str, group_rows: int, tokenizer: str) -> Any:
    import numpy as np
    import pyarrow as pa

    described = {
        "format": FORMAT,
        "version": VERSION,
        "sequence_length": sequence_length,
        "dtype": dtype,
        "group_rows": group_rows,
        "tokenizer": tokenizer,
    }
    return pa.schema(
        [
            pa.field("tokens", pa.binary(sequence_length * np.dtype(dtype).itemsize), nullable=False),
            pa.field("document_starts", pa.list_(pa.int32()), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
        ],
        metadata={FORMAT: json.dumps(described, sort_keys=True)},
    )


class _Hashed(io.RawIOBase):
    """Counts and digests what passes on to a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
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
            self._stream.write(data)
        return len(data)
