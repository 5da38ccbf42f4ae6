"""Arrow, as a stream or a file: each row is a document, one column holds the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.tables import ColumnSettings, table_texts


class ArrowSource(ColumnSettings, FileSourceSettings):
    """Arrow files, of either of its two formats."""

    kind: Literal["arrow"] = Field("arrow", description="How files are read.")


def read(reading: Reading[ArrowSource]) -> Iterator[Raw]:
    """The texts of the file's rows."""
    return table_texts(reading, "arrow")


SOURCE = SourceKind("arrow", ArrowSource, read, "Arrow streams and files, one row a document")
