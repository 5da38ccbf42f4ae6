"""Kinds of sources: raw files become texts. Each kind is one file that holds its settings, its code and its `SOURCE`.

The settings of a new kind derive from `FileSourceSettings`, and from `ColumnSettings` too where records have columns;
its `read` yields a `Raw` for each text of a `Reading`.
"""

from raylm.config.prepare.sources import FileSourceSettings, SourceSettings
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind, register_source, source_rows
from raylm.prep.readers.tables import ColumnSettings

__all__ = [
    "ColumnSettings",
    "FileSourceSettings",
    "Raw",
    "Reading",
    "SourceKind",
    "SourceSettings",
    "register_source",
    "source_rows",
]
