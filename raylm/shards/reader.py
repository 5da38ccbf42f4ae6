"""Reading rows of a shard by number: only the row groups that hold them are read, and each footer once a process."""

from __future__ import annotations

import functools
import io
import itertools
import json
import struct
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylm.errors import DataError, StorageError
from raylm.shards.manifest import FORMAT, DatasetManifest, Shard
from raylm.storage import NotFound, StoragePath, read_unchanging

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HINT = "restore it, or prepare the data into another folder"
_TAIL_BYTES = 64 * 1024  # read from a shard's end in the hope that the whole footer is in it


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a shard: tokens (n, sequence) in the stored dtype, lengths (n,) of what is not padding."""

    tokens: NDArray[Any]
    document_starts: tuple[NDArray[np.int32], ...]
    lengths: NDArray[np.int32]


def check_shards(folder: StoragePath, manifest: DatasetManifest) -> None:
    """Raise a DataError unless every shard of the manifest is there; one listing a folder, no reading."""
    parents = {shard.path.rpartition("/")[0] for shard in (*manifest.train, *manifest.held_out)}
    there = {
        f"{parent}/{place.name}" if parent else place.name
        for parent in parents
        for place in (folder / parent if parent else folder).list()
    }
    missing = [shard.path for shard in (*manifest.train, *manifest.held_out) if shard.path not in there]
    if missing:
        raise _missing(folder / missing[0], len(missing))


def read_rows(folder: StoragePath, shard: Shard, start: int, stop: int, manifest: DatasetManifest) -> Rows:
    """Rows `start` to `stop` of one shard; only the row groups that hold them are read."""
    import numpy as np

    if not 0 <= start <= stop <= shard.rows:
        raise ValueError(f"rows {start} to {stop} of a shard of {shard.rows} rows")
    if start == stop:
        empty = np.empty((0, manifest.sequence_length), dtype=manifest.dtype)
        return Rows(empty, (), np.empty(0, dtype=np.int32))
    place = folder / shard.path
    first, last = start // manifest.group_rows, (stop - 1) // manifest.group_rows
    try:
        table = _read_groups(place, shard, _Shape.of(manifest), list(range(first, last + 1)))
    except NotFound as error:
        raise _missing(place, 1) from error
    return _decode(table.slice(start - first * manifest.group_rows, stop - start), manifest)


@dataclass(frozen=True)
class _Shape:
    """What a shard must say of itself to belong to a manifest."""

    sequence_length: int
    dtype: str
    group_rows: int
    tokenizer: str

    @classmethod
    def of(cls, manifest: DatasetManifest) -> _Shape:
        return cls(manifest.sequence_length, manifest.dtype, manifest.group_rows, manifest.tokenizer)


def _read_groups(place: StoragePath, shard: Shard, shape: _Shape, groups: list[int]) -> Any:
    import pyarrow as pa

    local = place.local_path()
    try:
        if local is not None:
            return _open_local(place, shard, shape).read_row_groups(groups, use_threads=False)
        return _read_remote(place, shard, shape, groups)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(place, f"row groups {groups[0]} to {groups[-1]} cannot be read: {error}") from error


_LOCAL = threading.local()
_CHECKED = {"page_checksum_verification": True}
_OPEN_FILES = 64  # memory maps kept a thread


def _open_local(place: StoragePath, shard: Shard, shape: _Shape) -> Any:
    """The shard as an open memory map, kept a thread: a Parquet reader may not be shared between threads."""
    import pyarrow.parquet as pq

    path = place.url
    try:
        state = Path(path).stat()
    except FileNotFoundError as error:
        raise _missing(place, 1) from error
    opened: OrderedDict[str, tuple[tuple[Any, ...], Any]] = _LOCAL.__dict__.setdefault("opened", OrderedDict())
    key = (state.st_size, state.st_mtime_ns, state.st_ino, shard, shape)
    if path in opened and opened[path][0] == key:
        opened.move_to_end(path)
        return opened[path][1]
    _check_size(place, shard, state.st_size)
    footer = _footer(place, shard, shape)
    opened[path] = (key, pq.ParquetFile(path, metadata=footer, memory_map=True, **_CHECKED))
    if len(opened) > _OPEN_FILES:
        opened.popitem(last=False)
    return opened[path][1]


def _read_remote(place: StoragePath, shard: Shard, shape: _Shape, groups: list[int]) -> Any:
    """The row groups by one ranged request: they lie behind each other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    footer = _footer(place, shard, shape)
    begin = _column_start(footer.row_group(groups[0]).column(0))
    last = footer.row_group(groups[-1])
    final = last.column(last.num_columns - 1)
    end = _column_start(final) + final.total_compressed_size
    window = _Window(begin, read_unchanging(place, begin, end - begin), shard.bytes)
    file = pq.ParquetFile(pa.PythonFile(window, mode="r"), metadata=footer, **_CHECKED)
    return file.read_row_groups(groups, use_threads=False)


def _column_start(column: Any) -> int:
    return int(column.dictionary_page_offset or column.data_page_offset)


@functools.lru_cache(maxsize=1024)
def _footer(place: StoragePath, shard: Shard, shape: _Shape) -> Any:
    """The shard's Parquet metadata, read once a process and checked against the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        tail_start = max(0, shard.bytes - _TAIL_BYTES)
        tail = read_unchanging(place, tail_start, shard.bytes - tail_start)
        footer_bytes = struct.unpack("<I", tail[-8:-4])[0] + 8
        if tail[-4:] != b"PAR1" or footer_bytes > shard.bytes:
            raise _damaged(place, "it is no Parquet file, or not the one the manifest names")
        if footer_bytes > len(tail):
            tail_start = shard.bytes - footer_bytes
            tail = read_unchanging(place, tail_start, footer_bytes)
        window = _Window(tail_start, tail, shard.bytes)
        footer = pq.read_metadata(pa.PythonFile(window, mode="r"))
    except NotFound:
        raise
    except (StorageError, struct.error) as error:
        if not place.exists():
            raise _missing(place, 1) from error
        _check_size(place, shard, place.size())
        raise
    except (OSError, pa.ArrowException) as error:
        raise _damaged(place, f"its footer cannot be read: {error}") from error
    _check_shape(place, shard, shape, footer)
    return footer


def _check_shape(place: StoragePath, shard: Shard, shape: _Shape, footer: Any) -> None:
    try:
        described = json.loads((footer.metadata or {})[FORMAT.encode()])
    except (KeyError, ValueError) as error:
        raise _damaged(place, "it is a Parquet file, but not a raylm shard") from error
    for key, expected in asdict(shape).items():
        if described.get(key) != expected:
            raise _damaged(place, f"its {key} is {described.get(key)!r}, the manifest says {expected!r}")
    if footer.num_rows != shard.rows:
        raise _damaged(place, f"it has {footer.num_rows} rows, the manifest says {shard.rows}")


def _check_size(place: StoragePath, shard: Shard, size: int) -> None:
    if size == 0:
        raise _damaged(place, "it is empty")
    if size != shard.bytes:
        kind = "truncated" if size < shard.bytes else "not the one the manifest names"
        raise _damaged(place, f"it is {kind}: {size} bytes, the manifest says {shard.bytes}")


def _missing(place: StoragePath, count: int) -> DataError:
    others = f" (and {count - 1} more)" if count > 1 else ""
    return DataError(f"shard {place.url} is missing{others}", hint=_HINT)


def _damaged(place: StoragePath, what: str) -> DataError:
    return DataError(f"shard {place.url} cannot be used: {what}", hint=_HINT)


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


def _decode(table: Any, manifest: DatasetManifest) -> Rows:
    import numpy as np

    table = table.combine_chunks()
    if table.num_rows == 0 or any(column.num_chunks != 1 for column in table.columns):
        raise AssertionError("a table of rows has one chunk a column")
    tokens, starts, lengths = (column.chunk(0) for column in table.columns)
    width = manifest.sequence_length
    flat = np.frombuffer(tokens.buffers()[1], dtype=manifest.dtype, count=(tokens.offset + len(tokens)) * width)
    values = _int32(starts.values)
    offsets = _int32(starts.offsets).tolist()
    documents = tuple(values[begin:end] for begin, end in itertools.pairwise(offsets))
    return Rows(flat[tokens.offset * width :].reshape(len(tokens), width), documents, _int32(lengths))


def _int32(array: Any) -> NDArray[np.int32]:
    # Not to_numpy(): it imports pandas, a third of a second before a worker's first batch.
    import numpy as np

    return np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array)]
