"""What kinds of tables share: one column of a row holds the text, others are metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from pydantic import Field

from raylm.config.prepare.sources import SourceSettings
from raylm.errors import DataError
from raylm.prep.checks.skipped import BROKEN_RECORD, EXAMPLES
from raylm.prep.readers.base import NO_LANGUAGE, Meta, Raw, Reading, language_tag, metadata_of
from raylm.prep.readers.decoding import decode
from raylm.rows import BadRow, MissingColumn, Row, RowFile, read_rows

_NO_META: Meta = {}


class ColumnSettings(SourceSettings):
    """A source whose records have named columns."""

    column: str = Field("text", description="The column that holds the text.")
    meta: list[str] = Field(
        default_factory=list,
        description="Columns to take along as metadata for steps, such as url and language; JSON may lack them.",
    )


Table = TypeVar("Table", bound=ColumnSettings)


def table_texts(
    reading: Reading[Table], kind: str, *, delimiter: str | None = None, quote: str | None = None
) -> Iterator[Raw]:
    """The texts of a table's rows, with their metadata. kind: csv, parquet or arrow. delimiter, quote: of CSV."""
    source = reading.source
    try:
        for row in read_rows(replace(row_file(reading), delimiter=delimiter, quote=quote), kind):
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
                raw = Raw(row.position, text or "", metadata(reading, row))
            except DataError as error:
                place = f"{reading.path.url} row {row.position}"
                raise DataError(f"{place} {error.message}", hint=error.hint) from error
            yield raw
    except MissingColumn as error:
        raise DataError(error.message, hint=column_hint(reading, error.column, "column")) from error


def row_file(reading: Reading[Table]) -> RowFile:
    """The range as the reader of rows takes it."""
    source, part = reading.source, reading.range

    def on_bad(bad: BadRow) -> None:
        if bad.reason == "too_large":
            reading.skip("too_large", bad.position, bad.why)
        elif bad.reason != "encoding" or decode(reading, bad.position, bad.content, bad.unit) is not None:
            set_aside(reading, bad)

    return RowFile(
        reading.path,
        columns=(source.column, *source.meta),
        optional=frozenset(source.meta) - {source.column},
        start=part.start,
        stop=part.stop,
        max_bytes=source.max_bytes,
        max_compression_ratio=source.max_compression_ratio,
        on_bad=on_bad,
    )


def set_aside(reading: Reading[Table], bad: BadRow) -> None:
    """Count a row that cannot be read."""
    # Counting lines reads the file up to here: only for the few that a person will see.
    error = bad.error(exact=len(reading.skipped.examples.get(BROKEN_RECORD, ())) < EXAMPLES)
    if bad.column is not None:
        error = DataError(error.message, hint=column_hint(reading, bad.column, "key"))
    reading.skipped.broken_record(error)


def metadata(reading: Reading[Table], row: Row) -> Meta:
    """What is taken along of a row."""
    names = reading.source.meta
    if not names:
        return _NO_META
    found = metadata_of({name: row.value[name] for name in names})
    given = found.get("language")
    if not isinstance(given, str):
        return found
    others = {name: value for name, value in found.items() if name != "language"}
    language = language_tag(given) or (given if given.strip().lower() not in NO_LANGUAGE else "")
    return {**others, "language": language} if language.strip() else others


def column_hint(reading: Reading[Table], column: str, what: str) -> str:
    """What to do about a column that is missing or holds no text."""
    source = reading.source
    if column == source.column:
        return f"set `column` of source {source.name!r} to the {what} that holds the text"
    return f"set `meta` of source {source.name!r} to {what}s that are there"
