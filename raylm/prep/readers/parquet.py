"""Parquet: each row is a document, one column holds the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raylm.config.prepare.sources import FileSourceSettings
from raylm.prep.ranges import Part, joined
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.tables import ColumnSettings, table_texts
from raylm.rows.tables import row_groups
from raylm.storage import StoragePath


class ParquetSource(ColumnSettings, FileSourceSettings):
    """Parquet files."""

    kind: Literal["parquet"] = Field("parquet", description="How files are read.")


def read(reading: Reading[ParquetSource]) -> Iterator[Raw]:
    """The texts of the range's row groups."""
    return table_texts(reading, "parquet")


def _cut(source: ParquetSource, path: StoragePath, size: int, unit_bytes: int) -> list[Part]:
    """Row groups are never cut; a part counts them."""
    groups = (Part(number, number + 1, held) for number, held in enumerate(row_groups(path)))
    return joined(groups, unit_bytes)


SOURCE = SourceKind("parquet", ParquetSource, read, "Parquet, one row a document", cut=_cut)
