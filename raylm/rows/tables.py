"""Tables as rows: Parquet, Arrow and CSV."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from raylm.errors import DataError
from raylm.rows.base import Row, RowFile
from raylm.rows.compressed import BrokenFile, FunctionStream, is_damage
from raylm.rows.lines import lines, not_utf8
from raylm.storage import StoragePath

_BATCH_ROWS = 1024
_LINE_END = re.compile(r"(?<=\r)(?!\n)")  # a return alone ends a line, too, as old programs write it
_SEPARATOR = re.compile(r'"?sep=(.)"?')  # which Excel reads, and writes, before the names
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"


def row_groups(path: StoragePath) -> list[int]:
    """The bytes of each row group of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open_read() as stream:
        try:
            footer = pq.read_metadata(stream)
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
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
        except (pa.ArrowException, OSError) as error:  # zstd's damage is an OSError without a number
            if not is_damage(error):
                raise
            raise BrokenFile(
                f"{file.path.url} cannot be read as Parquet: {error}", hint=_hint(file, "parquet")
            ) from error


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
            f"{file.path.url} cannot be read as Arrow, row {row}: {error}", hint=_hint(file, "arrow")
        ) from error


def _hint(file: RowFile, kind: str) -> str:
    """What to do with a file that is not of this kind."""
    return "fetch it again" if kind in file.path.name.lower() else "give the kind of file that it is"


def csv_rows(file: RowFile, stream: BinaryIO) -> Iterator[Row]:
    """Rows of comma-separated values, or tab-separated where the name ends so; the first row names the columns.

    A record that is broken costs its first line: reading goes on behind that, so that an open quote takes no others.
    """
    tabs = ".tsv" in file.path.name.lower()
    quote = ("" if tabs else '"') if file.quote is None else file.quote
    csv.field_size_limit(file.max_bytes)
    table = _Records(file, stream, delimiter=file.delimiter or ("\t" if tabs else ","), quote=quote)
    there = table.head()
    if not there:
        return
    _refuse_other_delimiter(file, there)
    names = file.find_columns(there)
    chosen = [(name, there.index(name)) for name in names]
    for line, row in table.rows(len(there)):
        value = {name: row[index] for name, index in chosen}
        text = next(iter(value.values()), "")
        if not (text.isascii() or _is_text(text)):
            _not_utf8(file, line, text.encode(errors="surrogateescape"))
            continue
        yield Row({name: _with_marks(given) for name, given in value.items()}, line, file.path)


def _refuse_other_delimiter(file: RowFile, head: list[str]) -> None:
    """Say so where the names of columns are one, and hold the wanted one between other delimiters."""
    if len(head) != 1 or not file.columns:
        return
    for other, spelled in {";": ";", "\t": "\\t", "|": "|", ",": ","}.items():
        names = [name.strip(" \"'") for name in head[0].split(other)]
        if len(names) > 1 and file.columns[0] in names:
            raise DataError(
                f'{file.path.url} has "{spelled}" between its columns: {", ".join(names)}',
                hint=f'set `delimiter: "{spelled}"` of this source',
            )


class _Records:
    """The records of CSV. number: of the line that was read last."""

    def __init__(self, file: RowFile, stream: BinaryIO, *, delimiter: str, quote: str) -> None:
        # What is not UTF-8 passes through the parser unchanged, so that only its own row is bad.
        decoded = (line.decode(errors="surrogateescape") for _, line in lines(file, stream))
        self._lines = (part for line in decoded for part in _LINE_END.split(line) if part)
        self._file, self._again, self._taken = file, deque[str](), list[str]()
        self._settings: dict[str, Any] = {"delimiter": delimiter, "strict": True}
        self._settings |= {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        line = line.lstrip("\ufeff") if not self.number else line
        self.number += 1
        self._taken.append(line)
        return line

    def head(self) -> list[str]:
        """The names of the columns; none where the file is empty."""
        first = next(self, None)
        if first is not None and (told := _SEPARATOR.fullmatch(first.strip())) is not None:
            self._settings["delimiter"] = told[1]
        elif first is not None:
            self._again.append(first)
            self.number = 0
        try:
            return next((row for row in csv.reader(self, **self._settings) if row), [])
        except csv.Error as error:
            raise BrokenFile(
                f"{self._file.path.url} does not begin with the names of its columns: {error}",
                hint="set the source's delimiter and quote to what the file uses, or correct its first line",
            ) from error

    def rows(self, columns: int) -> Iterator[tuple[int, list[str]]]:
        """The records behind the head, each with the number of its last line; broken ones are reported."""
        reader = csv.reader(self, **self._settings)
        while True:
            self._taken.clear()
            try:
                row = next(reader)
                if len(row) > columns and not any(row[columns:]):
                    row = row[:columns]  # a delimiter behind the last value
                if row and len(row) != columns:
                    raise csv.Error(f"{len(row)} values for {columns} columns")
            except StopIteration:
                return
            except csv.Error as error:
                # Behind its first line: what a quote took that nothing closes are other records.
                self._again.extendleft(reversed(self._taken[1:]))
                self.number -= len(self._taken) - 1
                hint = "quote values that hold commas, quotes or line ends, or set the source's quote and delimiter"
                self._file.bad(self.number, "broken_record", f"is broken: {error}", hint=hint)
                reader = csv.reader(self, **self._settings)
                continue
            if row:
                yield self.number, row


def _with_marks(text: str) -> str:
    """A text with a mark in place of each byte that is not UTF-8."""
    if text.isascii() or _is_text(text):
        return text
    return text.encode(errors="surrogateescape").decode(errors="replace")


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
    columns = [_column(batch.column(name), first=number == 0) for number, name in enumerate(names)]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _column(column: Any, *, first: bool) -> list[Any]:
    """A column's values. What is not UTF-8 is bytes in the first one, which holds the text, and has marks in others."""
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        held = column.cast(pa.large_binary()).to_pylist()
        return held if first else [None if one is None else one.decode(errors="replace") for one in held]
