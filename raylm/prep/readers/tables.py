"""Tables become documents: Parquet, Arrow and CSV, of which one column holds the text.

Comes in: a file, and for Parquet the row groups that are wanted. Leaves: texts by their row, for CSV by their
line, with the columns that are to be taken along.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import BrokenFile, Skipped
from raylm.prep.readers.base import Raw, taken_along
from raylm.prep.readers.compressed import Reader, is_damage
from raylm.prep.readers.lines import lines
from raylm.prep.units import Atom, FileRange
from raylm.storage import StoragePath

_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"


def row_groups(place: StoragePath) -> list[Atom]:
    """The row groups of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with place.open_read() as stream:
        try:
            footer = pq.read_metadata(stream)
        except pa.ArrowException as error:
            raise BrokenFile(f"{place.url} is not a Parquet file: {error}", hint="correct prepare.sources") from error
    sizes = [footer.row_group(number).total_byte_size for number in range(footer.num_row_groups)]
    return [Atom(number, number + 1, size) for number, size in enumerate(sizes)]


def parquet_rows(source: SourceSettings, place: StoragePath, piece: FileRange) -> Iterator[Raw]:
    """The rows of the piece's row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with place.open_read() as stream:
        try:
            file = pq.ParquetFile(stream)
            _find_columns(source, place, file.schema_arrow.names)
            stop = file.num_row_groups if piece.stop is None else piece.stop
            row = sum(file.metadata.row_group(number).num_rows for number in range(piece.start))
            groups = list(range(piece.start, stop))
            wanted = [source.column, *source.meta]
            for batch in file.iter_batches(1024, row_groups=groups, columns=wanted, use_threads=False):
                for raw in _rows(batch, source, place, row):
                    yield raw
                    row += 1
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place.url} holds text that is not UTF-8, near row {row}: {error}",
                hint="write the column again as UTF-8, or as binary with encoding_errors: skip",
            ) from error
        except pa.ArrowException as error:
            raise BrokenFile(f"{place.url} cannot be read as Parquet: {error}", hint="fetch it again") from error


def arrow_rows(source: SourceSettings, place: StoragePath, stream: BinaryIO) -> Iterator[Raw]:
    """Batches of either of Arrow's formats, the stream (as Hugging Face datasets are saved) or the file."""
    import pyarrow as pa

    row, begins, ending = 0, b"", b""

    def read(most: int) -> bytes:
        nonlocal begins, ending
        data = begins[:most] or stream.read(most)
        begins = begins[len(data) :] if begins else b""
        ending = (ending + data[-8:])[-8:]
        return data

    try:
        # A file is a stream between its magic word, padded to eight bytes, and a footer that only seekers need.
        begins = stream.read(8)
        begins = b"" if begins.startswith(b"ARROW1") else begins
        with pa.ipc.open_stream(cast(BinaryIO, Reader(read))) as reader:
            _find_columns(source, place, reader.schema.names)
            for batch in reader:
                for raw in _rows(batch, source, place, row):
                    yield raw
                    row += 1
        if ending != _ARROW_END:  # Arrow takes a file that is cut between two batches for a whole one
            raise BrokenFile(
                f"{place.url} ends after row {row} without its end mark", hint="fetch it again; it is truncated"
            )
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if not is_damage(error):
            raise
        raise BrokenFile(f"{place.url} cannot be read as Arrow, row {row}: {error}", hint="fetch it again") from error


def csv_rows(
    source: SourceSettings, place: StoragePath, stream: BinaryIO, piece: FileRange, skipped: Skipped
) -> Iterator[Raw]:
    """Rows of comma-separated values, or tab-separated where the name ends so; the first row names the columns."""
    # What is not UTF-8 passes through the parser unchanged, so that the caller can say where it is, or skip it.
    decoded = (line.decode(errors="surrogateescape") for _, line in lines(source, place, stream, piece, skipped))
    csv.field_size_limit(source.max_bytes)
    rows = csv.reader(decoded, delimiter="\t" if ".tsv" in place.name else ",", strict=True)
    names = next(rows, [])
    column, *others = _find_columns(source, place, [name.removeprefix("\ufeff") for name in names])
    while True:
        try:
            row = next(rows)
            if row and len(row) != len(names):
                raise csv.Error(f"{len(row)} values for {len(names)} columns")
        except StopIteration:
            return
        except csv.Error as error:
            why = f"{place.url} line {rows.line_num} is broken: {error}"
            skipped.broken_record(DataError(why, hint="quote values that hold commas, quotes or line ends"))
        else:
            if row:
                meta = {name: row[index] for name, index in zip(source.meta, others, strict=True)}
                yield Raw(rows.line_num, row[column].encode(errors="surrogateescape"), meta)


def _find_columns(source: SourceSettings, place: StoragePath, names: list[str]) -> list[int]:
    """Where the text and what is taken along stand; a DataError when one of them does not."""
    for wanted in (source.column, *source.meta):
        if wanted not in names:
            key, holds = ("column", "that holds the text") if wanted == source.column else ("meta", "to take along")
            raise DataError(
                f"{place.url} has no column {wanted!r}; it has: {', '.join(names)}",
                hint=f"set `{key}` of source {source.name!r} to the column{'s' * (key == 'meta')} {holds}",
            )
    return [names.index(wanted) for wanted in (source.column, *source.meta)]


def _rows(batch: Any, source: SourceSettings, place: StoragePath, first: int) -> Iterator[Raw]:
    texts = batch.column(source.column).to_pylist()
    others = [batch.column(name).to_pylist() for name in source.meta]
    for row, (text, *values) in enumerate(zip(texts, *others, strict=True), first):
        if not isinstance(text, str | bytes | None):
            raise DataError(
                f"{place.url} row {row}: column {source.column!r} is {type(text).__name__}, not text",
                hint=f"set `column` of source {source.name!r} to the column that holds the text",
            )
        try:
            yield Raw(row, text or "", taken_along(dict(zip(source.meta, values, strict=True))))
        except DataError as error:
            raise DataError(f"{place.url} row {row} {error.message}", hint=error.hint) from error
