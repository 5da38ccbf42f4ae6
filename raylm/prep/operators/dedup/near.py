"""Near-duplicate removal by MinHash and locality-sensitive hashing: of similar documents the first one stays.

A unit gathers a signature of each document and its key in each band. Tasks take one band each, in ranges of its keys:
documents with equal keys are candidates, and those whose signatures are similar enough become edges. What is similar to
the same document belongs together, also over several steps. A task holds one range of keys and the signatures of its
candidates; only the last one holds all edges, which are as many as there are duplicates, not documents.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from raylm.config.base import Settings
from raylm.prep.operators.barrier import Runner, gathered
from raylm.prep.operators.dedup.decisions import read_table, row_count, without_dropped, write_decisions, write_table
from raylm.prep.operators.dedup.minhash import Signer, band_keys, bands_for, similarity
from raylm.prep.operators.kind import OperatorKind
from raylm.prep.operators.record import OperatorRecord
from raylm.records import Document
from raylm.storage import StoragePath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RANGE_ROWS = 4_000_000  # keys that a task compares at once, 24 bytes each; 256 more for a candidate's signature
_TASKS = 4  # that compare, at least; where there is little, one takes several bands
_SIGNED_CHARACTERS = 256_000  # of documents that are signed together: with 64,000 it takes half as long again
_ROUNDS = 16  # documents of one bucket that others are compared with: a bucket of strangers costs no square
_EDGES = "edges"
_UNIT_BITS = 40  # of a document's number in its unit, below the unit's


class NearDuplicates(Settings):
    """Keep the first of similar documents, by MinHash and locality-sensitive hashing."""

    threshold: float = Field(0.8, gt=0, lt=1, description="Jaccard similarity of runs of words that counts as equal.")
    ngram: int = Field(5, ge=1, le=100, description="Words a run.")
    permutations: int = Field(256, ge=16, le=1024, description="Entries of a signature; more: more exact, slower.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of the hash functions that make signatures.")


class NearDuplicatesBarrier:
    """See the module."""

    def __init__(self, settings: NearDuplicates) -> None:
        self._settings = settings

    def gatherer(self) -> _Signatures:
        """A fresh one for a unit."""
        return _Signatures(self._settings)

    def resolve(self, folder: StoragePath, units: Sequence[int], run: Runner) -> None:
        """Find candidates band by band, then what belongs together."""
        bands, _ = bands_for(self._settings.threshold, self._settings.permutations)
        rows = sum(row_count(gathered(folder, unit)) for unit in units)
        ranges = -(-rows // _RANGE_ROWS) or 1
        # Opening a unit's file takes as long as comparing a thousand documents: few of them are taken band after band.
        together = max(1, min(_RANGE_ROWS // (rows or 1), -(-bands // _TASKS)))
        parts = [range(first, min(first + together, bands)) for first in range(0, bands, together)]
        compare = functools.partial(_compare, folder, tuple(units), tuple(parts), ranges, self._settings.threshold)
        for _ in run(compare, range(len(parts) * ranges)):
            pass
        for _ in run(functools.partial(_cluster, folder, len(parts) * ranges), [0]):
            pass

    def applied(
        self, documents: Iterable[Document], folder: StoragePath, unit: int, record: OperatorRecord
    ) -> Iterator[Document]:
        """The documents but those that are similar to an earlier one."""
        return without_dropped(documents, folder, unit, record, "near_duplicate")


class _Signatures:
    """The signatures of a unit's documents."""

    def __init__(self, settings: NearDuplicates) -> None:
        self._settings = settings
        self._signer = Signer(settings.permutations, settings.ngram, settings.seed)
        self._documents = 0
        self._waiting: list[str] = []
        self._characters = 0
        self._numbers: list[int] = []
        self._signatures: list[NDArray[np.uint32]] = []

    def add(self, document: Document) -> None:
        """Look at the next document of the unit; one without a word is similar to none."""
        self._waiting.append(document.text)
        self._characters += len(document.text)
        if self._characters >= _SIGNED_CHARACTERS:
            self._sign()

    def _sign(self) -> None:
        for signature in self._signer.sign(self._waiting):
            if signature is not None:
                self._numbers.append(self._documents)
                self._signatures.append(signature)
            self._documents += 1
        self._waiting, self._characters = [], 0

    def table(self) -> Any:
        """Rows of (document, signature, band_0, …): of each entry of a signature the lower 16 bits."""
        import numpy as np
        import pyarrow as pa

        self._sign()
        permutations = self._settings.permutations
        signatures = np.array(self._signatures, dtype=np.uint32).reshape(-1, permutations)
        keys = band_keys(signatures, *bands_for(self._settings.threshold, permutations))
        # The least of many values is small: its upper bits say little, its lower ones are as good as random.
        short = np.ascontiguousarray(signatures.astype(np.uint16))
        width = pa.binary(2 * permutations)
        packed = pa.Array.from_buffers(width, len(short), [None, pa.py_buffer(short.tobytes())])
        bands = {f"band_{band}": pa.array(keys[:, band]) for band in range(keys.shape[1])}
        return pa.table({"document": pa.array(self._numbers, type=pa.int64()), "signature": packed, **bands})


@dataclass(frozen=True)
class _Candidates:
    """Documents that share a key of one band with others, by key; `row` is theirs in their unit's file."""

    keys: NDArray[np.uint64]
    unit: NDArray[np.int64]
    row: NDArray[np.int64]
    document: NDArray[np.int64]


def _compare(
    folder: StoragePath, units: Sequence[int], parts: Sequence[range], ranges: int, threshold: float, number: int
) -> str:
    """Find the pairs of some bands whose keys are equal, lie in one range, and whose signatures are similar."""
    import numpy as np

    bands, part = divmod(number, ranges)
    low, high = part * 2**64 // ranges, (part + 1) * 2**64 // ranges - 1
    found = _candidates(folder, units, parts[bands], np.uint64(low), np.uint64(high))
    unit_of, row = (np.concatenate([getattr(one, name) for one in found]) for name in ("unit", "row"))
    # A document is often a candidate in several bands: its signature is read once.
    known, places = np.unique((unit_of << _UNIT_BITS) | row, return_inverse=True)
    signatures = _signatures(folder, known >> _UNIT_BITS, known & ((1 << _UNIT_BITS) - 1))
    edges = []
    for one, mine in zip(found, np.split(places, np.cumsum([len(one.row) for one in found])[:-1]), strict=True):
        first, second = _similar(one.keys, signatures, mine, threshold)
        ids = (one.unit << _UNIT_BITS) | one.document
        edges.append((ids[first], ids[second]))
    first, second = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    _write_edges(folder, number, first, second)
    return json.dumps({"edges": len(first)})


def _candidates(
    folder: StoragePath, units: Sequence[int], bands: Sequence[int], low: np.uint64, high: np.uint64
) -> list[_Candidates]:
    """Each band's candidates whose keys lie between two, both included."""
    import numpy as np

    found: list[list[tuple[Any, ...]]] = [[] for _ in bands]
    for unit in units:
        table = read_table(gathered(folder, unit), columns=["document", *(f"band_{band}" for band in bands)])
        document = table["document"].to_numpy()
        for rows, band in zip(found, bands, strict=True):
            keys = table[f"band_{band}"].to_numpy()
            inside = np.flatnonzero((keys >= low) & (keys <= high))
            rows.append((keys[inside], np.full(len(inside), unit), inside, document[inside]))
    return [_shared(_Candidates(*(np.concatenate(columns) for columns in zip(*rows, strict=True)))) for rows in found]


def _shared(found: _Candidates) -> _Candidates:
    """Those whose key another one has; buckets of one are the most, and go before any signature is read."""
    import numpy as np

    order = np.lexsort((found.document, found.unit, found.keys))
    keys = found.keys[order]
    same = np.append(False, keys[1:] == keys[:-1])
    order = order[same | np.append(same[1:], False)]
    return _Candidates(found.keys[order], found.unit[order], found.row[order], found.document[order])


def _signatures(folder: StoragePath, unit_of: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The signatures of these rows, which are sorted, one unit's file after the other."""
    import numpy as np

    if not len(row):
        return np.zeros((0, 1), dtype=np.uint16)
    parts = []
    for unit in np.unique(unit_of):
        column = read_table(gathered(folder, int(unit)), columns=["signature"])["signature"].combine_chunks()
        wanted = column.take(row[unit_of == unit])
        parts.append(np.frombuffer(b"".join(wanted.to_pylist()), dtype=np.uint16).reshape(len(wanted), -1))
    return np.concatenate(parts)


def _similar(
    keys: NDArray[np.uint64], signatures: NDArray[np.uint16], places: NDArray[np.int64], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of rows, the first before the second: in each bucket all are compared with the first one, then those that
    are not similar to it with the first of them, and so on. places: of the rows' signatures.
    """
    import numpy as np

    firsts, seconds = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    left = np.arange(len(keys))
    for _ in range(_ROUNDS):
        if len(left) < 2:
            break
        fresh = np.append(True, keys[left][1:] != keys[left][:-1])
        leader = left[np.maximum.accumulate(np.where(fresh, np.arange(len(left)), 0))]
        others, leaders = left[~fresh], leader[~fresh]
        close = similarity(signatures[places[others]], signatures[places[leaders]]) >= threshold
        firsts.append(leaders[close])
        seconds.append(others[close])
        left = others[~close]
    return np.concatenate(firsts), np.concatenate(seconds)


def _write_edges(folder: StoragePath, number: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    import pyarrow as pa

    write_table(folder / _EDGES / f"{number:06d}.parquet", pa.table({"first": first, "second": second}))


def _cluster(folder: StoragePath, edge_files: int, number: int) -> str:
    """Join edges into clusters and decide to drop all but the first of each."""
    import numpy as np

    tables = [read_table(folder / _EDGES / f"{one:06d}.parquet") for one in range(edge_files)]
    first, second = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("first", "second"))
    nodes, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    labels = least_labels(len(nodes), places[: len(first)], places[len(first) :])
    dropped = np.flatnonzero(labels != np.arange(len(nodes)))
    kept = nodes[labels[dropped]]
    mask = (1 << _UNIT_BITS) - 1
    columns = {
        "unit": nodes[dropped] >> _UNIT_BITS,
        "document": nodes[dropped] & mask,
        "part": np.zeros(len(dropped), dtype=np.int64),
        "first_unit": kept >> _UNIT_BITS,
        "first_document": kept & mask,
    }
    write_decisions(folder, number, columns)
    return json.dumps({"found": len(dropped)})


def least_labels(count: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of `count` nodes the least node that edges connect it with, over any number of them."""
    import numpy as np

    labels = np.arange(count)
    while True:
        before = labels.copy()
        np.minimum.at(labels, first, labels[second])
        np.minimum.at(labels, second, labels[first])
        labels = labels[labels]  # a label's own label is as good, and nearer to the end
        if np.array_equal(labels, before):
            return labels


OPERATOR = OperatorKind(
    name="near_duplicates",
    settings=NearDuplicates,
    summary="keeps the first of similar documents, by MinHash",
    barrier=NearDuplicatesBarrier,
)
