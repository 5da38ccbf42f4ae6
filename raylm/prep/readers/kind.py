"""What a kind of source is: its settings, how its files are listed, cut and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from raylm.prep.ranges import Part
from raylm.prep.readers.base import Raw, Reading, S
from raylm.prep.readers.listing import list_files
from raylm.storage import Connection, StoragePath

if TYPE_CHECKING:
    from raylm.config.prepare.sources import SourceSettings


def whole(settings: SourceSettings, path: StoragePath, size: int, unit_bytes: int) -> None:
    """Files of this kind are never cut."""


@dataclass(frozen=True)
class SourceKind(Generic[S]):
    """A kind of source, as SOURCES holds it.

    read: the texts of a range of a file. files: those of a source and their sizes, in order. cut: the parts of about
    `unit_bytes` of a file that is larger, None where it stays whole. collect: instead of files, (id, text) of documents
    that are only on this machine; they are written down as JSON lines before any unit begins, and `read` reads those.
    """

    name: str
    settings: type[S]
    read: Callable[[Reading[S]], Iterator[Raw]]
    description: str
    files: Callable[[S, Connection], list[tuple[StoragePath, int]]] = list_files
    cut: Callable[[S, StoragePath, int, int], list[Part] | None] = whole
    collect: Callable[[S], Iterator[tuple[str, str]]] | None = None
