"""JSON lines: each object is a row, one of its keys holds the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.errors import DataError
from raylm.prep.ranges import Part, cut_at_lines
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.tables import ColumnSettings, column_hint, metadata, row_file, set_aside
from raylm.rows import BadRow, read_rows
from raylm.rows.json_rows import PEEKED, is_list
from raylm.storage import StoragePath


class JsonLinesSource(ColumnSettings, FileSourceSettings):
    """JSON lines, one object a document."""

    kind: Literal["jsonl"] = Field("jsonl", description="How files are read.")


def read(reading: Reading[JsonLinesSource]) -> Iterator[Raw]:
    """The texts of the JSON objects that begin in the range; broken ones are counted."""
    column = reading.source.column
    for row in read_rows(row_file(reading), "jsonl"):
        text = row.value[column]
        try:
            if not isinstance(text, str | None):
                hint = column_hint(reading, column, "key")
                raise DataError(f"has {type(text).__name__}, not text, as {column!r}", hint=hint)
            raw = Raw(row.position, text or "", metadata(reading, row))
        except DataError as error:
            bad = BadRow(reading.path, row.position, "byte", "broken_record", error.message, error.hint)
            set_aside(reading, bad)
        else:
            yield raw


def _cut(source: JsonLinesSource, path: StoragePath, size: int, unit_bytes: int) -> list[Part] | None:
    if size > unit_bytes:
        with path.open_read() as stream:
            if is_list(stream.read(PEEKED)):
                return None  # its lines are no rows
    return cut_at_lines(path, size, unit_bytes)


SOURCE = SourceKind("jsonl", JsonLinesSource, read, "JSON lines, one object a document", cut=_cut)
