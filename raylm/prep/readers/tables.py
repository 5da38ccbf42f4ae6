"""Tables and JSON lines, of which one column holds the text: rows become documents."""

from __future__ import annotations

from collections.abc import Iterator

from raylm.errors import DataError
from raylm.prep.checks.skipped import BROKEN_RECORD, EXAMPLES
from raylm.prep.ranges import Atom
from raylm.prep.readers.base import Meta, Raw, Reading, metadata_of
from raylm.prep.readers.decoding import decode
from raylm.rows import BadRow, MissingColumn, Row, RowFile, read_rows
from raylm.rows.tables import row_groups
from raylm.storage import StoragePath

_NO_META: Meta = {}


def table_documents(reading: Reading, kind: str) -> Iterator[Raw]:
    """The texts of a table's rows, with the columns that are metadata. kind: csv, parquet or arrow."""
    source = reading.source
    try:
        for row in read_rows(_file(reading), kind):
            text = row.value[source.column]
            if not isinstance(text, str | bytes | None):
                raise DataError(
                    f"{reading.path.url} row {row.position}: column {source.column!r} is {type(text).__name__}, "
                    "not text",
                    hint=f"set `column` of source {source.name!r} to the column that holds the text",
                )
            if isinstance(text, bytes):
                text = decode(reading, row.position, text, "row")
                if text is None:
                    continue
            try:
                yield Raw(row.position, text or "", _meta(reading, row))
            except DataError as error:
                place = f"{reading.path.url} row {row.position}"
                raise DataError(f"{place} {error.message}", hint=error.hint) from error
    except MissingColumn as error:
        raise DataError(error.message, hint=_column_hint(reading, error.column, "column")) from error


def json_documents(reading: Reading) -> Iterator[Raw]:
    """The texts of the JSON objects that begin in the range, one a line; broken ones are counted."""
    column = reading.source.column
    for row in read_rows(_file(reading), "jsonl"):
        text = row.value[column]
        try:
            if not isinstance(text, str | None):
                hint = _column_hint(reading, column, "key")
                raise DataError(f"has {type(text).__name__}, not text, as {column!r}", hint=hint)
            raw = Raw(row.position, text or "", _meta(reading, row))
        except DataError as error:
            bad = BadRow(reading.path, row.position, "byte", "broken_record", error.message, error.hint)
            _set_aside(reading, bad)
        else:
            yield raw


def parquet_atoms(path: StoragePath) -> list[Atom]:
    """The row groups of a Parquet file."""
    return [Atom(number, number + 1, size) for number, size in enumerate(row_groups(path))]


def _file(reading: Reading) -> RowFile:
    source, part = reading.source, reading.range

    def on_bad(bad: BadRow) -> None:
        if bad.reason == "too_large":
            reading.skip("too_large", bad.position, bad.why)
        elif bad.reason != "encoding" or decode(reading, bad.position, bad.content, bad.unit) is not None:
            _set_aside(reading, bad)

    return RowFile(
        reading.path,
        columns=(source.column, *source.meta),
        start=part.start,
        stop=part.stop,
        max_bytes=source.max_bytes,
        max_compression_ratio=source.max_compression_ratio,
        on_bad=on_bad,
    )


def _set_aside(reading: Reading, bad: BadRow) -> None:
    # Counting lines reads the file up to here: only for the few that a person will see.
    error = bad.error(exact=len(reading.skipped.examples.get(BROKEN_RECORD, ())) < EXAMPLES)
    if bad.column is not None:
        error = DataError(error.message, hint=_column_hint(reading, bad.column, "key"))
    reading.skipped.broken_record(error)


def _meta(reading: Reading, row: Row) -> Meta:
    names = reading.source.meta
    return metadata_of({name: row.value[name] for name in names}) if names else _NO_META


def _column_hint(reading: Reading, column: str, what: str) -> str:
    source = reading.source
    if column == source.column:
        return f"set `column` of source {source.name!r} to the {what} that holds the text"
    return f"set `meta` of source {source.name!r} to {what}s that are there"
