"""The held-out sequences, dealt to the ranks: the same ones at any number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from raylm.errors import DataError
from raylm.records import MicroBatch
from raylm.shards import Rows
from raylm.stream.collate import Collator, Part
from raylm.stream.lanes import lanes_of
from raylm.stream.loader import StreamSettings
from raylm.stream.mixture import quantised
from raylm.stream.reading import Dataset, check_agreement, cut, read_checked, with_columns

Chosen = tuple[int, int]  # a dataset, and a row of its held-out split


def held_out(
    datasets: Sequence[Dataset],
    settings: StreamSettings,
    *,
    rank: int = 0,
    world_size: int = 1,
    sequences: int | None = None,
) -> Iterator[tuple[MicroBatch, bool, int]]:
    """One rank's held-out micro-batches, each with whether it counts and of which dataset; every rank gets as many.

    `sequences`: how many over all ranks, or as many as there are; None for all. Each dataset gives its weight's
    share, spread evenly over its rows. What counts is together the same at any world size: a rank that has none left
    gets one of another's that does not count. The last micro-batch of a dataset may have fewer rows.
    """
    check_agreement(datasets)
    datasets = with_columns(datasets, settings.columns)
    collator = Collator(datasets, settings.columns, document_attention=settings.document_attention)
    chosen = _chosen(datasets, sequences)
    lanes, size = settings.batch.lanes, settings.batch.micro_batch
    of_each = [[row for row in chosen if row[0] == dataset] for dataset in range(len(datasets))]
    batches = [rows[at : at + size] for rows in of_each for at in range(0, len(rows), size)]
    for first in range(0, len(batches), lanes):
        dealt = batches[first : first + lanes]
        own = [(lane, True) for lane in lanes_of(rank, world_size=world_size, lanes=len(dealt))]
        turns = -(-len(dealt) // world_size)
        given = own + [(0, False)] * (turns - len(own))
        rows = _read(datasets, sorted({row for lane, _ in given for row in dealt[lane]}))
        for lane, counts in given:
            made = _made(collator, datasets, lane, {row: rows[row] for row in dealt[lane]})
            yield made, counts, dealt[lane][0][0]


def check_any(datasets: Sequence[Dataset]) -> None:
    """Raise a DataError unless there is something to evaluate on."""
    if not any(dataset.manifest.held_out_rows for dataset in datasets):
        raise DataError(
            "no held-out sequences in " + ", ".join(dataset.folder.url for dataset in datasets),
            hint="prepare with a larger prepare.held_out, or set evaluate.every_steps to null",
        )


def _chosen(datasets: Sequence[Dataset], sequences: int | None) -> list[Chosen]:
    """The rows to evaluate, ascending; the same wherever it is asked."""
    there = [dataset.manifest.held_out_rows for dataset in datasets]
    check_any(datasets)
    shares = there
    if sequences is not None and sequences < sum(there):
        weights = quantised([dataset.weight if count else 0.0 for dataset, count in zip(datasets, there, strict=True)])
        shares = [min(count, sequences * weight // sum(weights)) for count, weight in zip(there, weights, strict=True)]
        # What rounding and short datasets left over goes to whoever has rows, in turn.
        while sum(shares) < sequences:
            for dataset, count in enumerate(there):
                if shares[dataset] < count and sum(shares) < sequences:
                    shares[dataset] += 1
    return [
        (dataset, row * count // share)
        for dataset, (count, share) in enumerate(zip(there, shares, strict=True))
        for row in range(share)
    ]


def _read(datasets: Sequence[Dataset], chosen: Sequence[Chosen]) -> dict[Chosen, Rows]:
    """The chosen rows, each as Rows of one; neighbours are read at once, and no row group twice."""
    found: dict[Chosen, Rows] = {}
    for dataset, shard, wanted in _runs(datasets, chosen):
        begin = sum(other.rows for other in datasets[dataset].manifest.held_out[:shard])
        first = wanted[0] - begin
        described = datasets[dataset]
        rows = read_checked(described, described.manifest.held_out[shard], first, wanted[-1] - begin + 1)
        for row in wanted:
            at = row - begin - first
            found[dataset, row] = cut(rows, slice(at, at + 1))
    return found


def _runs(datasets: Sequence[Dataset], chosen: Sequence[Chosen]) -> Iterator[tuple[int, int, list[int]]]:
    """(dataset, shard, rows) of ascending rows, each in the row group of the one before it or in the next."""
    run: tuple[int, int, list[int]] | None = None
    for dataset, row in chosen:
        manifest = datasets[dataset].manifest
        ends = list(accumulate(shard.rows for shard in manifest.held_out))
        shard = int(np.searchsorted(ends, row, side="right"))
        begin = ends[shard] - manifest.held_out[shard].rows
        if run is not None:
            last = (run[2][-1] - begin) // manifest.group_rows
            if run[:2] == (dataset, shard) and (row - begin) // manifest.group_rows <= last + 1:
                run[2].append(row)
                continue
            yield run
        run = (dataset, shard, [row])
    if run is not None:
        yield run


def _made(collator: Collator, datasets: Sequence[Dataset], lane: int, rows: dict[Chosen, Rows]) -> MicroBatch:
    firsts = list(accumulate((dataset.manifest.held_out_rows for dataset in datasets), initial=0))
    ids = np.array([firsts[dataset] + row for dataset, row in rows], dtype=np.int64)
    parts = [Part(one, slice(0, 1), np.array([place])) for place, one in enumerate(rows.values())]
    return collator.gathered(lane, parts, ids, np.zeros(len(rows), dtype=np.int64))
