"""Tables as rows: Parquet, Arrow and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from raylm.errors import DataError
from raylm.rows.base import Row, RowFile
from raylm.rows.compressed import BrokenFile, FunctionStream, is_damage
from raylm.rows.lines import lines, not_utf8
from raylm.storage import StoragePath

_BATCH_ROWS = 1024
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"


def row_groups(path: StoragePath) -> list[int]:
    """The bytes of each row group of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open_read() as stream:
        try:
            footer = pq.read_metadata(stream)
        except pa.ArrowException as error:
            raise BrokenFile(
                f"{path.url} is not a Parquet file: {error}", hint="fetch it again, or give its kind"
            ) from error
    return [footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)]


def parquet_rows(file: RowFile) -> Iterator[Row]:
    """The rows of the range's row groups, by their number in the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    with file.path.open_read() as stream:
        try:
            table = pq.ParquetFile(stream)
            names = file.find_columns(table.schema_arrow.names)
            stop = table.num_row_groups if file.stop is None else file.stop
            row = sum(table.metadata.row_group(number).num_rows for number in range(file.start))
            groups = list(range(file.start, stop))
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
                for value in _values(batch, names):
                    yield Row(value, row, file.path)
                    row += 1
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file.path.url} holds text that is not UTF-8, near row {row}: {error}",
                hint="write the column again as UTF-8, or as binary with encoding_errors: skip",
            ) from error
        except pa.ArrowException as error:
            raise BrokenFile(f"{file.path.url} cannot be read as Parquet: {error}", hint="fetch it again") from error


def arrow_rows(file: RowFile, stream: BinaryIO) -> Iterator[Row]:
    """The rows of either of Arrow's formats, the stream (as Hugging Face datasets are saved) or the file."""
    import pyarrow as pa

    row, begins, ending = 0, b"", b""

    def read(max_bytes: int) -> bytes:
        nonlocal begins, ending
        data = begins[:max_bytes] or stream.read(max_bytes)
        begins = begins[len(data) :] if begins else b""
        ending = (ending + data[-8:])[-8:]
        return data

    try:
        # A file is a stream between its magic word, padded to eight bytes, and a footer that only seekers need.
        begins = stream.read(8)
        begins = b"" if begins.startswith(b"ARROW1") else begins
        with pa.ipc.open_stream(cast(BinaryIO, FunctionStream(read))) as reader:
            names = file.find_columns(reader.schema.names)
            for batch in reader:
                for value in _values(batch, names):
                    yield Row(value, row, file.path)
                    row += 1
        if ending != _ARROW_END:  # Arrow takes a file that is cut between two batches for a whole one
            raise BrokenFile(
                f"{file.path.url} ends after row {row} without its end mark", hint="fetch it again; it is truncated"
            )
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if not is_damage(error):
            raise
        raise BrokenFile(
            f"{file.path.url} cannot be read as Arrow, row {row}: {error}", hint="fetch it again"
        ) from error


def csv_rows(file: RowFile, stream: BinaryIO) -> Iterator[Row]:
    """Rows of comma-separated values, or tab-separated where the name ends so; the first row names the columns."""
    # What is not UTF-8 passes through the parser unchanged, so that only its own row is bad.
    decoded = (line.decode(errors="surrogateescape") for _, line in lines(file, stream))
    csv.field_size_limit(file.max_bytes)
    rows = csv.reader(decoded, delimiter="\t" if ".tsv" in file.path.name else ",", strict=True)
    there = [name.removeprefix("\ufeff") for name in next(rows, [])]
    names = file.find_columns(there)
    chosen = [(name, there.index(name)) for name in names]
    while True:
        try:
            row = next(rows)
            if row and len(row) != len(there):
                raise csv.Error(f"{len(row)} values for {len(there)} columns")
        except StopIteration:
            return
        except csv.Error as error:
            hint = "quote values that hold commas, quotes or line ends"
            file.bad(rows.line_num, "broken_record", f"is broken: {error}", hint=hint)
            continue
        if not row:
            continue
        value = {name: row[index] for name, index in chosen}
        wrong = next((text for text in value.values() if not (text.isascii() or _is_text(text))), None)
        if wrong is None:
            yield Row(value, rows.line_num, file.path)
        else:
            _not_utf8(file, rows.line_num, wrong.encode(errors="surrogateescape"))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(file: RowFile, line: int, content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        file.bad(line, "encoding", not_utf8(error), hint="convert the file to UTF-8", content=content)


def _values(batch: Any, names: list[str]) -> Iterator[dict[str, Any]]:
    columns = [batch.column(name).to_pylist() for name in names]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))
