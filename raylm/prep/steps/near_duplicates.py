"""Near-duplicate removal by MinHash and locality-sensitive hashing: of similar documents the first one stays.

A unit gathers a signature a document and a key a band. Tasks take one band each, in ranges of its keys: documents with
equal keys are candidates, and those whose signatures are similar enough become edges. What is similar to the same
document belongs together, also over several steps. A task holds one range of keys and the signatures of its
candidates; only the last one holds all edges, which are as many as there are duplicates, not documents.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raylm.config.steps import NearDuplicates
from raylm.prep.steps.barrier import Runner, gathered
from raylm.prep.steps.drops import read_table, row_count, without_drops, write_drops, write_table
from raylm.prep.steps.minhash import Signer, band_keys, bands_for, similarity
from raylm.prep.steps.record import StepRecord
from raylm.records import Document
from raylm.storage import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RANGE_ROWS = 4_000_000  # keys that a task compares at once, 24 bytes each; 256 more for a candidate's signature
_ROUNDS = 16  # documents of one bucket that others are compared with: a bucket of strangers costs no square
_EDGES = "edges"
_UNIT_BITS = 40  # of a document's number in its unit, below the unit's


class NearDuplicatesBarrier:
    """See the module."""

    def __init__(self, settings: NearDuplicates) -> None:
        self._settings = settings

    def gatherer(self) -> _Signatures:
        """A fresh one for a unit."""
        return _Signatures(self._settings)

    def resolve(self, folder: Place, units: Sequence[int], run: Runner) -> None:
        """Find candidates band by band, then what belongs together."""
        bands, _ = bands_for(self._settings.threshold, self._settings.permutations)
        rows = sum(row_count(gathered(folder, unit)) for unit in units)
        ranges = -(-rows // _RANGE_ROWS) or 1
        compare = functools.partial(_compare, folder, tuple(units), ranges, self._settings.threshold)
        for _ in run(compare, range(bands * ranges)):
            pass
        for _ in run(functools.partial(_cluster, folder, bands * ranges), [0]):
            pass

    def applied(
        self, documents: Iterable[Document], folder: Place, unit: int, record: StepRecord
    ) -> Iterator[Document]:
        """The documents but those that are similar to an earlier one."""
        return without_drops(documents, folder, unit, record, "near_duplicate")


class _Signatures:
    """The signatures of a unit's documents."""

    def __init__(self, settings: NearDuplicates) -> None:
        self._settings = settings
        self._signer = Signer(settings.permutations, settings.words, settings.seed)
        self._documents = 0
        self._numbers: list[int] = []
        self._signatures: list[NDArray[np.uint32]] = []

    def add(self, document: Document) -> None:
        """Look at the next document of the unit; one without a word is similar to none."""
        signature = self._signer.sign(document.text)
        if signature is not None:
            self._numbers.append(self._documents)
            self._signatures.append(signature)
        self._documents += 1

    def table(self) -> Any:
        """Rows of (document, signature, band_0, …): of each entry of a signature the lower 16 bits."""
        import numpy as np
        import pyarrow as pa

        permutations = self._settings.permutations
        signatures = np.array(self._signatures, dtype=np.uint32).reshape(-1, permutations)
        keys = band_keys(signatures, *bands_for(self._settings.threshold, permutations))
        # The least of many values is small: its upper bits say little, its lower ones are as good as random.
        short = np.ascontiguousarray(signatures.astype(np.uint16))
        width = pa.binary(2 * permutations)
        packed = pa.Array.from_buffers(width, len(short), [None, pa.py_buffer(short.tobytes())])
        bands = {f"band_{band}": pa.array(keys[:, band]) for band in range(keys.shape[1])}
        return pa.table({"document": pa.array(self._numbers, type=pa.int64()), "signature": packed, **bands})


def _compare(folder: Place, units: Sequence[int], ranges: int, threshold: float, number: int) -> str:
    """Find the pairs of one band whose keys are equal, lie in one range, and whose signatures are similar."""
    import numpy as np

    band, part = divmod(number, ranges)
    low, high = part * 2**64 // ranges, (part + 1) * 2**64 // ranges - 1
    found = []
    for unit in units:
        table = read_table(gathered(folder, unit), columns=["document", f"band_{band}"])
        keys = table[f"band_{band}"].to_numpy()
        inside = np.flatnonzero((keys >= np.uint64(low)) & (keys <= np.uint64(high)))
        found.append((keys[inside], np.full(len(inside), unit), inside, table["document"].to_numpy()[inside]))
    keys, unit_of, row, document = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.lexsort((document, unit_of, keys))
    keys, unit_of, row, document = keys[order], unit_of[order], row[order], document[order]
    # Buckets of one are the most: they go before any signature is read.
    same = np.append(False, keys[1:] == keys[:-1])
    shared = same | np.append(same[1:], False)
    keys, unit_of, row, document = keys[shared], unit_of[shared], row[shared], document[shared]
    first, second = _similar(keys, _signatures(folder, unit_of, row), threshold)
    ids = (unit_of.astype(np.int64) << _UNIT_BITS) | document
    _write_edges(folder, number, ids[first], ids[second])
    return json.dumps({"edges": len(first)})


def _signatures(folder: Place, unit_of: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The signatures of these rows, one unit's file after the other."""
    import numpy as np

    if not len(row):
        return np.zeros((0, 1), dtype=np.uint16)
    parts = {}
    for unit in np.unique(unit_of):
        column = read_table(gathered(folder, int(unit)), columns=["signature"])["signature"].combine_chunks()
        wanted = column.take(row[unit_of == unit])
        parts[int(unit)] = np.frombuffer(b"".join(wanted.to_pylist()), dtype=np.uint16).reshape(len(wanted), -1)
    result = np.empty((len(row), next(iter(parts.values())).shape[1]), dtype=np.uint16)
    for unit, values in parts.items():
        result[unit_of == unit] = values
    return result


def _similar(
    keys: NDArray[np.uint64], signatures: NDArray[np.uint16], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of rows, the first before the second: in each bucket all are compared with the first one, then those that
    are not similar to it with the first of them, and so on.
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
        close = similarity(signatures[others], signatures[leaders]) >= threshold
        firsts.append(leaders[close])
        seconds.append(others[close])
        left = others[~close]
    return np.concatenate(firsts), np.concatenate(seconds)


def _write_edges(folder: Place, number: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
    import pyarrow as pa

    write_table(folder / _EDGES / f"{number:06d}.parquet", pa.table({"first": first, "second": second}))


def _cluster(folder: Place, edge_files: int, number: int) -> str:
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
    write_drops(folder, number, columns)
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
