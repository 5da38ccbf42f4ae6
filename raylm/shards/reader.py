"""Reading rows of a shard by number: only the row groups that hold them are read, and each footer once per process."""

from __future__ import annotations

import functools
import io
import itertools
import json
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.errors import DataError, StorageError
from raylm.shards.columns import Column
from raylm.shards.manifest import FORMAT, DatasetManifest, RowFormat, Shard
from raylm.storage import NotFound, StoragePath, read_unchanging

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HINT = "restore it, or prepare the data into another folder"
_REQUIRED = ("tokens", "document_starts", "length")
_TAIL_BYTES = 64 * 1024  # read from a shard's end in the hope that the whole footer is in it


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a shard: tokens (n, sequence) in the stored dtype, lengths (n,) of what is not padding.

    columns: the optional ones that were asked for, (n, …) each.
    """

    tokens: NDArray[Any]
    document_starts: tuple[NDArray[np.int32], ...]
    lengths: NDArray[np.int32]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def check_shards(folder: StoragePath, manifest: DatasetManifest) -> None:
    """Raise a DataError unless every shard of the manifest is there; one listing per folder, no reading."""
    parents = {shard.path.rpartition("/")[0] for shard in (*manifest.train, *manifest.held_out)}
    there = {
        f"{parent}/{path.name}" if parent else path.name
        for parent in parents
        for path in (folder / parent if parent else folder).list()
    }
    missing = [shard.path for shard in (*manifest.train, *manifest.held_out) if shard.path not in there]
    if missing:
        raise _missing(folder / missing[0], len(missing))


def read_rows(
    folder: StoragePath,
    shard: Shard,
    start: int,
    stop: int,
    manifest: DatasetManifest,
    columns: Sequence[Column] = (),
) -> Rows:
    """Rows `start` to `stop` of one shard, with these optional columns; only row groups that hold them are read."""
    import numpy as np

    if not 0 <= start <= stop <= shard.rows:
        raise ValueError(f"rows {start} to {stop} of a shard of {shard.rows} rows")
    rows = manifest.rows
    if start == stop:
        empty = np.empty((0, rows.sequence_length), dtype=rows.dtype)
        none = {column.name: column.decode(b"", 0, rows.sequence_length) for column in columns}
        return Rows(empty, (), np.empty(0, dtype=np.int32), none)
    path = folder / shard.path
    first, last = start // rows.group_rows, (stop - 1) // rows.group_rows
    names = None if tuple(columns) == rows.columns else [*_REQUIRED, *(column.name for column in columns)]
    try:
        table = _read_groups(_Opening(path, shard, rows), list(range(first, last + 1)), names)
    except NotFound as error:
        raise _missing(path, 1) from error
    return _decode(table.slice(start - first * rows.group_rows, stop - start), rows, columns)


@dataclass(frozen=True)
class _Opening:
    """A shard, where it lies, and what its rows must look like to belong to its manifest."""

    path: StoragePath
    shard: Shard
    rows: RowFormat


def _read_groups(opening: _Opening, groups: list[int], names: list[str] | None) -> Any:
    import pyarrow as pa

    try:
        if opening.path.local_path() is not None:
            return _open_local(opening).read_row_groups(groups, columns=names, use_threads=False)
        return _read_remote(opening, groups, names)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(opening.path, f"row groups {groups[0]} to {groups[-1]} cannot be read: {error}") from error


_LOCAL = threading.local()
_CHECKED = {"page_checksum_verification": True}
_OPEN_FILES = 64  # memory maps kept per thread


def _open_local(opening: _Opening) -> Any:
    """The shard as an open memory map, kept per thread: a Parquet reader may not be shared between threads."""
    import pyarrow.parquet as pq

    path = opening.path.url
    try:
        state = Path(path).stat()
    except FileNotFoundError as error:
        raise _missing(opening.path, 1) from error
    opened: OrderedDict[str, tuple[tuple[Any, ...], Any]] = _LOCAL.__dict__.setdefault("opened", OrderedDict())
    key = (state.st_size, state.st_mtime_ns, state.st_ino, opening.shard, opening.rows)
    if path in opened and opened[path][0] == key:
        opened.move_to_end(path)
        return opened[path][1]
    _check_size(opening, state.st_size)
    opened[path] = (key, pq.ParquetFile(path, metadata=_footer(opening), memory_map=True, **_CHECKED))
    if len(opened) > _OPEN_FILES:
        opened.popitem(last=False)
    return opened[path][1]


def _read_remote(opening: _Opening, groups: list[int], names: list[str] | None) -> Any:
    """The row groups by one ranged request: they lie behind each other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    footer = _footer(opening)
    begin = _column_start(footer.row_group(groups[0]).column(0))
    last = footer.row_group(groups[-1])
    final = last.column(last.num_columns - 1)
    end = _column_start(final) + final.total_compressed_size
    window = _Window(begin, read_unchanging(opening.path, begin, end - begin), opening.shard.bytes)
    file = pq.ParquetFile(pa.PythonFile(window, mode="r"), metadata=footer, **_CHECKED)
    return file.read_row_groups(groups, columns=names, use_threads=False)


def _column_start(column: Any) -> int:
    return int(column.dictionary_page_offset or column.data_page_offset)


@functools.lru_cache(maxsize=1024)
def _footer(opening: _Opening) -> Any:
    """The shard's Parquet metadata, read once per process and checked against the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, shard = opening.path, opening.shard
    try:
        tail_start = max(0, shard.bytes - _TAIL_BYTES)
        tail = read_unchanging(path, tail_start, shard.bytes - tail_start)
        footer_bytes = struct.unpack("<I", tail[-8:-4])[0] + 8
        if tail[-4:] != b"PAR1" or footer_bytes > shard.bytes:
            raise _damaged(path, "it is no Parquet file, or not the one the manifest names")
        if footer_bytes > len(tail):
            tail_start = shard.bytes - footer_bytes
            tail = read_unchanging(path, tail_start, footer_bytes)
        window = _Window(tail_start, tail, shard.bytes)
        footer = pq.read_metadata(pa.PythonFile(window, mode="r"))
    except NotFound:
        raise
    except (StorageError, struct.error) as error:
        if not path.exists():
            raise _missing(path, 1) from error
        _check_size(opening, path.size())
        raise
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, f"its footer cannot be read: {error}") from error
    _check_rows(opening, footer)
    return footer


def _check_rows(opening: _Opening, footer: Any) -> None:
    path, shard = opening.path, opening.shard
    try:
        described = json.loads((footer.metadata or {})[FORMAT.encode()])
    except (KeyError, ValueError) as error:
        raise _damaged(path, "it is a Parquet file, but not a raylm shard") from error
    for key, expected in opening.rows.described().items():
        if described.get(key) != expected:
            raise _damaged(path, f"its {key} is {described.get(key)!r}, the manifest says {expected!r}")
    if footer.num_rows != shard.rows:
        raise _damaged(path, f"it has {footer.num_rows} rows, the manifest says {shard.rows}")


def _check_size(opening: _Opening, size: int) -> None:
    expected = opening.shard.bytes
    if size == 0:
        raise _damaged(opening.path, "it is empty")
    if size != expected:
        kind = "truncated" if size < expected else "not the one the manifest names"
        raise _damaged(opening.path, f"it is {kind}: {size} bytes, the manifest says {expected}")


def _missing(path: StoragePath, count: int) -> DataError:
    others = f" (and {count - 1} more)" if count > 1 else ""
    return DataError(f"shard {path.url} is missing{others}", hint=_HINT)


def _damaged(path: StoragePath, what: str) -> DataError:
    return DataError(f"shard {path.url} cannot be used: {what}", hint=_HINT)


class _Window(io.RawIOBase):
    """A file of which only the bytes from `start` on are held."""

    def __init__(self, start: int, data: bytes, size: int) -> None:
        self._start, self._data, self._size, self._position = start, data, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, count: int | None = -1) -> bytes:
        begin = self._position - self._start
        if begin < 0:
            raise OSError(f"byte {self._position} is outside of what was read")
        data = self._data[begin : None if count is None or count < 0 else begin + count]
        self._position += len(data)
        return data


def _decode(table: Any, rows: RowFormat, columns: Sequence[Column]) -> Rows:
    import numpy as np

    table = table.combine_chunks()
    if table.num_rows == 0 or any(column.num_chunks != 1 for column in table.columns):
        raise AssertionError("a table of rows has one chunk per column")
    tokens, starts, lengths = (table.column(name).chunk(0) for name in _REQUIRED)
    width = rows.sequence_length
    flat = np.frombuffer(tokens.buffers()[1], dtype=rows.dtype, count=(tokens.offset + len(tokens)) * width)
    values = _int32(starts.values)
    offsets = _int32(starts.offsets).tolist()
    documents = tuple(values[begin:end] for begin, end in itertools.pairwise(offsets))
    more = {}
    for column in columns:
        array = table.column(column.name).chunk(0)
        more[column.name] = column.decode(array.buffers()[1], array.offset + len(array), width)[array.offset :]
    return Rows(flat[tokens.offset * width :].reshape(len(tokens), width), documents, _int32(lengths), more)


def _int32(array: Any) -> NDArray[np.int32]:
    # Not to_numpy(): it imports pandas, a third of a second before a worker's first batch.
    import numpy as np

    return np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array)]
