"""What a kind of source is: its settings, how its files are listed, cut and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic

from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.prep.ranges import Part
from raylm.prep.readers.base import Raw, Reading, S
from raylm.prep.readers.listing import list_files
from raylm.storage import Connection, StoragePath


def whole(settings: SourceSettings, path: StoragePath, size: int, unit_bytes: int) -> None:
    """Files of this kind are never cut."""


@dataclass(frozen=True)
class SourceKind(Generic[S]):
    """One kind of source; its settings class stands beside its code, and `SOURCES` or `register_source` name it.

    name: as job files write it. summary: one line for tables. read: the texts of a range of a file. files: those of a
    source and their sizes, in order. cut: the parts of about `unit_bytes` of a file that is larger, None where it stays
    whole. collect: instead of files, (id, text) of documents that are only on this machine; they are written down as
    JSON lines before any unit begins, and `read` reads those.
    """

    name: str
    settings: type[S]
    read: Callable[[Reading[S]], Iterator[Raw]]
    summary: str
    files: Callable[[S, Connection], list[tuple[StoragePath, int]]] = list_files
    cut: Callable[[S, StoragePath, int, int], list[Part] | None] = whole
    collect: Callable[[S], Iterator[tuple[str, str]]] | None = None


def register_source(kind: SourceKind[Any], *, replace: bool = False) -> None:
    """Make a kind of source known, so that `prepare.sources` of a job may name it.

    Call it at the top level of the module that defines the kind, and name that module under `plugins` of the job.
    """
    SOURCES.register(kind.name, kind, replace=replace)


def source_rows() -> Iterator[tuple[str, str]]:
    """(name, what it is) of every kind of source, for tables."""
    for name, kind in SOURCES.items():
        yield name, kind.summary
