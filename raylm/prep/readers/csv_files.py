"""Comma- or tab-separated values: each row is a document, one column holds the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.tables import ColumnSettings, table_texts


class CsvSource(ColumnSettings, FileSourceSettings):
    """Comma-separated values, or tab-separated ones in files named .tsv; the first row names the columns."""

    kind: Literal["csv"] = Field("csv", description="How files are read.")
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="Between values; when not set, a tab in files named .tsv, else a comma.",
    )
    quote: str | None = Field(
        None,
        max_length=1,
        description='Around values that hold delimiters; "" for none; when not set, none in files named .tsv, else ".',
    )


def read(reading: Reading[CsvSource]) -> Iterator[Raw]:
    """The texts of the file's rows; broken ones are counted."""
    source = reading.source
    return table_texts(reading, "csv", delimiter=source.delimiter, quote=source.quote)


SOURCE = SourceKind("csv", CsvSource, read, "comma- or tab-separated values, one row a document")
