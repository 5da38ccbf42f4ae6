"""A worker's batches, positioned by the step alone, and the held-out sequences.

Comes in: datasets, settings, seed, rank and step. Leaves: one `Batch` a step, for ever. The order comes from
raylm.stream.lanes; who reads it, threads here or Ray Data, changes no batch.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from raylm.config.data import DataSettings
from raylm.config.optim import BatchSettings
from raylm.errors import DataError, RaylmError
from raylm.records import Batch, MicroBatch
from raylm.shards import Rows
from raylm.stream.lanes import Block, DatasetRows, Geometry, Order
from raylm.stream.mixture import quantised
from raylm.stream.reading import Dataset, check_agreement, read_checked
from raylm.stream.threads import BlockReader, Threads

__all__ = ["Dataset", "Stream", "held_out", "held_out_turns", "order_of"]

IGNORED = -100  # the label that no loss counts
AHEAD_BYTES = 256 * 2**20  # stored tokens read ahead of need by one rank, at most


def order_of(datasets: Sequence[Dataset], *, batch: BatchSettings, data: DataSettings, seed: int) -> Order:
    """The order that these settings give; its fingerprint tells whether two runs see the same batches."""
    rows = [
        DatasetRows(
            tuple(shard.rows for shard in dataset.manifest.train), dataset.weight, tuple(dataset.weight_schedule)
        )
        for dataset in datasets
    ]
    return Order(rows, Geometry(batch.sequences, batch.micro_batch, data.chunk_rows, data.window_chunks, seed))


class Stream:
    """One rank's batches from `start_step` on: an endless iterator, the same whoever reads the shards."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        batch: BatchSettings,
        data: DataSettings,
        seed: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        reader: Literal["ray", "threads"] | None = None,
        document_attention: bool = False,
    ) -> None:
        """`reader` stands for data.reader when given; `document_attention`: no document predicts the next one."""
        check_agreement(datasets)
        self._datasets = tuple(datasets)
        self._order = order_of(datasets, batch=batch, data=data, seed=seed)
        self._lanes = tuple(range(rank, self._order.lanes, world_size))
        self._micro = batch.micro_batch
        self._sequence_length = datasets[0].manifest.sequence_length
        self._document_attention = document_attention
        self._step = start_step
        self._error: RaylmError | None = None
        self._held: dict[tuple[int, int], deque[tuple[Block, Rows]]] = defaultdict(deque)
        self._taken = {
            (lane, dataset): self._order.taken(dataset, lane, start_step)
            for lane in self._lanes
            for dataset in range(len(datasets))
        }
        self._reader = self._open(data, reader or data.reader)

    def _open(self, data: DataSettings, reader: str) -> BlockReader:
        plan = self._order.needs(self._lanes, self._step)
        window_rows = data.chunk_rows * data.window_chunks
        most = AHEAD_BYTES // max(dataset.row_bytes for dataset in self._datasets)
        # A window ahead for every lane and dataset, since all may end at the same step; two where there are few.
        ahead_rows = min(max(2, len(self._taken)) * window_rows, max(most, window_rows))
        if reader == "threads":
            return Threads(self._datasets, plan, ahead_rows=ahead_rows, at_once=len(self._taken))
        from raylm.stream.ray_data import RayDataReader

        return RayDataReader(
            self._datasets,
            plan,
            ahead_rows=ahead_rows,
            most_rows=most,
            window_rows=window_rows,
            at_once=len(self._taken),
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._error is not None:
            raise self._error
        try:
            made = Batch(self._step, tuple(self._micro_batch(lane) for lane in self._lanes))
        except RaylmError as error:
            self._error = error
            self.close()
            raise
        self._step += 1
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading; safe to call twice."""
        self._reader.close()
        self._held.clear()

    def _micro_batch(self, lane: int) -> MicroBatch:
        if len(self._datasets) == 1:
            block, rows, first, count = self._take(lane, 0, self._micro)
            if count == self._micro:
                # Nearly always: rows that lie together, widened in one pass.
                part = slice(first, first + count)
                tokens = rows.tokens[part].astype(np.int64)
                starts = rows.document_starts[part]
                labels = self._labels(tokens, rows.lengths[part], starts)
                epochs = np.full(count, block.epoch, dtype=np.int64)
                return MicroBatch(lane, tokens, labels, starts, self._order.ids(0, block.rows[part]), epochs)
            self._taken[lane, 0] -= count
        return self._gathered(lane)

    def _gathered(self, lane: int) -> MicroBatch:
        """A micro-batch of rows from several datasets or blocks."""
        micro = self._micro
        tokens = np.empty((micro, self._sequence_length), dtype=np.int64)
        lengths = np.empty(micro, dtype=np.int32)
        ids, epochs = np.empty(micro, dtype=np.int64), np.empty(micro, dtype=np.int64)
        starts: list[NDArray[np.int32]] = [_NO_STARTS] * micro
        drawn = self._order.datasets_of(lane, self._step)
        for dataset in np.unique(drawn).tolist():
            places = np.flatnonzero(drawn == dataset)
            done = 0
            while done < len(places):
                block, rows, first, count = self._take(lane, dataset, len(places) - done)
                part, where = slice(first, first + count), places[done : done + count]
                tokens[where] = rows.tokens[part]
                lengths[where] = rows.lengths[part]
                ids[where] = self._order.ids(dataset, block.rows[part])
                epochs[where] = block.epoch
                for place, row in zip(where.tolist(), rows.document_starts[part], strict=True):
                    starts[place] = row
                done += count
        return MicroBatch(lane, tokens, self._labels(tokens, lengths, starts), tuple(starts), ids, epochs)

    def _labels(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], starts: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.int64]:
        return _labels(tokens, lengths, starts if self._document_attention else None)

    def _take(self, lane: int, dataset: int, wanted: int) -> tuple[Block, Rows, int, int]:
        """The lane's next rows of a dataset, as (block, its rows, first, count); at most `wanted`, at least one."""
        nth = self._taken[lane, dataset]
        held = self._held[lane, dataset]
        if held and held[0][0].end <= nth:
            held.popleft()
        while not held:
            # Blocks come in the order of need, so what comes before this one is for this micro-batch too.
            came = self._reader.next()
            assert came is not None, "the plan has no end"
            self._held[came[0].lane, came[0].dataset].append(came)
        block, rows = held[0]
        assert block.first <= nth < block.end
        count = min(wanted, block.end - nth)
        self._taken[lane, dataset] = nth + count
        return block, rows, nth - block.first, count


_NO_STARTS = np.zeros(1, dtype=np.int32)


def _labels(
    tokens: NDArray[np.int64], lengths: NDArray[np.int32], starts: Sequence[NDArray[np.int32]] | None
) -> NDArray[np.int64]:
    """What is trained on: not the padding and, where documents do not see each other, no document's first token.

    The same array as `tokens` where nothing is left out.
    """
    if starts is None and lengths.min() == tokens.shape[1]:
        return tokens
    short = np.flatnonzero(lengths < tokens.shape[1]).tolist()
    labels = tokens.copy()
    if starts is not None:
        for row, firsts in enumerate(starts):
            labels[row, firsts] = IGNORED
    for row in short:
        labels[row, lengths[row] :] = IGNORED
    return labels


def held_out(
    datasets: Sequence[Dataset],
    *,
    batch: BatchSettings,
    rank: int,
    world_size: int,
    sequences: int | None = None,
    document_attention: bool = False,
) -> Iterator[tuple[MicroBatch, ...]]:
    """One rank's held-out micro-batches, in rounds of at most a global batch; all of them together at any world size.

    `sequences`: how many over all ranks, or as many as there are; None for all. Each dataset gives its weight's share,
    spread evenly over its rows. Every rank yields as many tuples, and `held_out_turns` says how many micro-batches
    the busiest rank gets. The last micro-batch may have fewer rows.
    """
    check_agreement(datasets)
    chosen = _held_out_rows(datasets, sequences)
    lanes = batch.lanes
    micro_batches = [chosen[first : first + batch.micro_batch] for first in range(0, len(chosen), batch.micro_batch)]
    for first in range(0, len(micro_batches), lanes):
        round_ = micro_batches[first : first + lanes]
        yield tuple(
            _held_out_batch(datasets, lane, round_[lane], document_attention)
            for lane in range(rank, len(round_), world_size)
        )


def held_out_turns(
    datasets: Sequence[Dataset], *, batch: BatchSettings, world_size: int, sequences: int | None = None
) -> int:
    """Micro-batches that rank 0, the busiest, gets from `held_out`."""
    count = -(-len(_held_out_rows(datasets, sequences)) // batch.micro_batch)
    rounds, rest = divmod(count, batch.lanes)
    return rounds * -(-batch.lanes // world_size) + -(-rest // world_size)


def _held_out_rows(datasets: Sequence[Dataset], sequences: int | None) -> list[tuple[int, int]]:
    """(dataset, row in its held-out split), the same wherever it is asked."""
    there = [dataset.manifest.held_out_rows for dataset in datasets]
    if not any(there):
        raise DataError(
            "no held-out sequences in " + ", ".join(dataset.folder.url for dataset in datasets),
            hint="prepare with a larger prepare.held_out, or turn evaluate.every_steps off",
        )
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


def _held_out_batch(
    datasets: Sequence[Dataset], lane: int, chosen: Sequence[tuple[int, int]], document_attention: bool
) -> MicroBatch:
    rows = [_held_out_row(datasets[dataset], row) for dataset, row in chosen]
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.int64)
    lengths = np.concatenate([row.lengths for row in rows])
    starts = tuple(row.document_starts[0] for row in rows)
    firsts = np.concatenate([[0], np.cumsum([dataset.manifest.held_out_rows for dataset in datasets])])
    ids = np.array([firsts[dataset] + row for dataset, row in chosen], dtype=np.int64)
    labels = _labels(tokens, lengths, starts if document_attention else None)
    return MicroBatch(lane, tokens, labels, starts, ids, np.zeros(len(chosen), dtype=np.int64))


def _held_out_row(dataset: Dataset, row: int) -> Rows:
    for shard in dataset.manifest.held_out:
        if row < shard.rows:
            return read_checked(dataset, shard, row, row + 1)
        row -= shard.rows
    raise AssertionError("a row beyond the held-out split")
