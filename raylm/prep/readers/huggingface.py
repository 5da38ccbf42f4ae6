"""A folder as Hugging Face's datasets library writes it and its hub holds it: the files of one split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from raylm.config.paths import PathOrUrl
from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import DataError
from raylm.prep.ranges import Part
from raylm.prep.readers.base import Raw, Reading
from raylm.prep.readers.kind import SourceKind
from raylm.prep.readers.tables import ColumnSettings
from raylm.rows import split_files
from raylm.rows.huggingface import file_kind
from raylm.storage import Connection, StoragePath


class HuggingFaceSource(ColumnSettings, SourceSettings):
    """A folder of the hub's layout, or of save_to_disk; its files are read by their own kind."""

    kind: Literal["huggingface"] = Field("huggingface", description="How files are read.")
    glob: PathOrUrl = Field(description="The folder, on any fsspec URL.")
    split: str = Field("train", description="The split to read.")
    config: str | None = Field(None, description="The configuration, where the folder's README.md names several.")

    @property
    def location(self) -> str:
        """The folder."""
        return self.glob


def read(reading: Reading[HuggingFaceSource]) -> Iterator[Raw]:
    """The texts of a file, as its kind is read."""
    kind, settings = _as_found(reading.source, reading.path)
    yield from kind.read(Reading(settings, reading.path, reading.range, reading.skipped))


def _files(source: HuggingFaceSource, connection: Connection) -> list[tuple[StoragePath, int]]:
    try:
        return split_files(StoragePath(source.glob, connection), source.split, source.config)
    except DataError as error:
        raise DataError(f"source {source.name!r}: {error.message}", hint=error.hint) from error


def _cut(source: HuggingFaceSource, path: StoragePath, size: int, unit_bytes: int) -> list[Part] | None:
    kind, settings = _as_found(source, path)
    return kind.cut(settings, path, size, unit_bytes)


def _as_found(source: HuggingFaceSource, path: StoragePath) -> tuple[SourceKind[Any], SourceSettings]:
    """The kind of this file, and the source as one of that kind; of text files each line is a document."""
    name = file_kind(path)
    assert name is not None  # split_files lists data files only
    kind = SOURCES.get(name)
    shared = source.model_dump(exclude={"kind"}, include=set(kind.settings.model_fields))
    return kind, kind.settings(**shared, **({"document": "line"} if name == "text" else {}))


SOURCE = SourceKind(
    "huggingface",
    HuggingFaceSource,
    read,
    "a folder as Hugging Face's datasets library or hub writes it",
    files=_files,
    cut=_cut,
)
