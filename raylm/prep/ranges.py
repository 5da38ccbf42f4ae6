"""Parts of input files, and how files are cut into them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from raylm.rows import COMPRESSED
from raylm.storage import StoragePath


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


class Part(NamedTuple):
    """From `start` to `stop` in the file's own terms, which is `size` bytes."""

    start: int
    stop: int
    size: int


def cut_at_lines(path: StoragePath, size: int, unit_bytes: int) -> list[Part] | None:
    """Equal parts of a file whose lines may be told apart anywhere; None for a compressed one."""
    if path.name.endswith(COMPRESSED):
        return None
    count = -(-size // unit_bytes)
    cuts = [size * number // count for number in range(count + 1)]
    return [Part(start, stop, stop - start) for start, stop in itertools.pairwise(cuts)]


def joined(parts: Iterable[Part], unit_bytes: int) -> list[Part]:
    """Neighbouring parts that cannot be cut, joined until they hold `unit_bytes`."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1].size + part.size <= unit_bytes:
            found[-1] = Part(found[-1].start, part.stop, found[-1].size + part.size)
        else:
            found.append(part)
    return found
