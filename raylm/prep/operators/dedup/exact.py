"""Exact deduplication of documents, paragraphs or lines: the first of equal ones stays.

A unit gathers 128 bits of each part. Parts are compared in ranges of their hash, so that a task never holds more than
one range however large the corpus is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from raylm.config.base import Settings
from raylm.prep.operators.barrier import Runner, gathered
from raylm.prep.operators.dedup.decisions import read_decisions, read_table, row_count, without_dropped, write_decisions
from raylm.prep.operators.kind import OperatorKind
from raylm.prep.operators.record import OperatorRecord
from raylm.records import Document
from raylm.storage import StoragePath

_RANGE_ROWS = 20_000_000  # hashes that a task compares at once: 40 bytes each
_COLUMNS = ("high", "low", "document", "part")  # 128 bits of hash, and where they come from
_SEPARATORS = {"paragraph": re.compile(r"(\n\s*\n)"), "line": re.compile(r"(\n)")}


class ExactDuplicates(Settings):
    """Keep the first of equal documents, or of equal lines or paragraphs."""

    part: Literal["document", "paragraph", "line"] = Field(
        "document", description="What is compared; a repeated paragraph or line is cut out of its document."
    )
    min_chars: int = Field(
        32, ge=0, description="Paragraphs and lines of fewer characters are kept however often they come."
    )


class ExactDuplicatesBarrier:
    """See the module."""

    def __init__(self, settings: ExactDuplicates, range_rows: int = _RANGE_ROWS) -> None:
        self._settings = settings
        self._range_rows = range_rows

    def gatherer(self) -> _Hashes:
        """A fresh one for a unit."""
        return _Hashes(self._settings)

    def resolve(self, folder: StoragePath, units: Sequence[int], run: Runner) -> None:
        """Find all but the first of equal parts."""
        rows = sum(row_count(gathered(folder, unit)) for unit in units)
        ranges = -(-rows // self._range_rows) or 1
        for _ in run(functools.partial(_compare, folder, tuple(units), ranges), range(ranges)):
            pass

    def applied(
        self, documents: Iterable[Document], folder: StoragePath, unit: int, record: OperatorRecord
    ) -> Iterator[Document]:
        """The documents without what another one, or another part of theirs, holds before."""
        if self._settings.part == "document":
            return without_dropped(documents, folder, unit, record, "duplicate")
        return self._cut(documents, read_decisions(folder, unit), record)

    def _cut(
        self, documents: Iterable[Document], drops: dict[int, dict[int, tuple[int, int]]], record: OperatorRecord
    ) -> Iterator[Document]:
        for number, document in enumerate(documents):
            record.take_in(document)
            kept = self._without(document, set(drops[number]), record) if number in drops else document
            if kept is not None:
                record.let_out(kept)
                yield kept

    def _without(self, document: Document, repeated: set[int], record: OperatorRecord) -> Document | None:
        # Every other piece is the separator that follows a part, and goes with it.
        pieces = _SEPARATORS[self._settings.part].split(document.text)
        text = "".join(piece for index, piece in enumerate(pieces) if index // 2 not in repeated).strip()
        gone = pieces[2 * min(repeated)] if repeated else ""
        record.cut(f"repeated_{self._settings.part}", document, gone.strip(), len(repeated))
        if text:
            return replace(document, text=text)
        record.drop(f"only_repeated_{self._settings.part}s", document)
        return None


class _Hashes:
    """The hash of each part of a unit's documents that is long enough to count."""

    def __init__(self, settings: ExactDuplicates) -> None:
        self._settings = settings
        self._documents = 0
        self._digests: list[bytes] = []
        self._places: list[tuple[int, int]] = []

    def add(self, document: Document) -> None:
        """Look at the next document of the unit."""
        if self._settings.part == "document":
            self._add(document.text, 0)
        else:
            for index, part in enumerate(_SEPARATORS[self._settings.part].split(document.text)[::2]):
                if len(part.strip()) >= max(1, self._settings.min_chars):
                    self._add(part.strip(), index)
        self._documents += 1

    def table(self) -> Any:
        """Rows of (high, low, document, part) in the order of the hash."""
        import numpy as np
        import pyarrow as pa

        keys = np.frombuffer(b"".join(self._digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)
        places = np.array(self._places, dtype=np.int64).reshape(-1, 2)
        order = np.lexsort((places[:, 1], places[:, 0], keys[:, 1], keys[:, 0]))
        columns = [keys[order, 0], keys[order, 1], places[order, 0], places[order, 1]]
        return pa.table(dict(zip(_COLUMNS, map(pa.array, columns), strict=True)))

    def _add(self, text: str, part: int) -> None:
        self._digests.append(hashlib.blake2b(text.encode(), digest_size=16).digest())
        self._places.append((self._documents, part))


def _compare(folder: StoragePath, units: Sequence[int], ranges: int, number: int) -> str:
    """Decide about all parts whose hash lies in one of equal ranges."""
    import numpy as np
    import pyarrow as pa

    low, high = number * 2**64 // ranges, (number + 1) * 2**64 // ranges - 1
    inside = [("high", ">=", pa.scalar(low, pa.uint64())), ("high", "<=", pa.scalar(high, pa.uint64()))]
    tables = [read_table(gathered(folder, unit), filters=inside) for unit in units]
    unit = np.repeat(np.array(units, dtype=np.int64), [len(table) for table in tables])
    high_bits, low_bits, document, part = (
        np.concatenate([table[name].to_numpy() for table in tables]) for name in _COLUMNS
    )
    order = np.lexsort((part, document, unit, low_bits, high_bits))
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (np.diff(high_bits[order]) != 0) | (np.diff(low_bits[order]) != 0)
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))
    again = order[~fresh]
    origin = order[first[~fresh]]
    write_decisions(
        folder,
        number,
        {
            "unit": unit[again],
            "document": document[again],
            "part": part[again],
            "first_unit": unit[origin],
            "first_document": document[origin],
        },
    )
    return json.dumps({"found": len(again)})


OPERATOR = OperatorKind(
    name="exact_duplicates",
    settings=ExactDuplicates,
    summary="keeps the first of equal documents, paragraphs or lines",
    barrier=ExactDuplicatesBarrier,
)
