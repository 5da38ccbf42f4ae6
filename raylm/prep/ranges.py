"""Parts of input files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FileRange:
    """A part of an input file: bytes, or row groups for Parquet, from `start` to `stop` (None: to the end).

    `size` is the file's length when it was listed; `limit` is the most documents to take.
    """

    url: str
    size: int
    start: int = 0
    stop: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Atom:
    """A part of a file that is not cut further: from `start` to `stop` in the file's own terms, and its bytes."""

    start: int
    stop: int
    size: int
