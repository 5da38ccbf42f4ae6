"""A worker's batches, positioned by the step alone, and the held-out sequences.

Comes in: sources, settings, seed, rank and step. Leaves: one `Batch` a step, for ever. The order comes from
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


def order_of(sources: Sequence[Dataset], *, batch: BatchSettings, data: DataSettings, seed: int) -> Order:
    """The order that these settings give; its fingerprint tells whether two runs see the same batches."""
    rows = [
        DatasetRows(tuple(shard.rows for shard in source.manifest.train), source.weight, tuple(source.stages))
        for source in sources
    ]
    return Order(rows, Geometry(batch.sequences, batch.micro_batch, data.chunk_rows, data.window_chunks, seed))


class Stream:
    """One rank's batches from `start_step` on: an endless iterator, the same whoever reads the shards."""

    def __init__(
        self,
        sources: Sequence[Dataset],
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
        check_agreement(sources)
        self._sources = tuple(sources)
        self._order = order_of(sources, batch=batch, data=data, seed=seed)
        self._lanes = tuple(range(rank, self._order.lanes, world_size))
        self._micro = batch.micro_batch
        self._sequence_length = sources[0].manifest.sequence_length
        self._document_attention = document_attention
        self._step = start_step
        self._error: RaylmError | None = None
        self._held: dict[tuple[int, int], deque[tuple[Block, Rows]]] = defaultdict(deque)
        self._taken = {
            (lane, source): self._order.taken(source, lane, start_step)
            for lane in self._lanes
            for source in range(len(sources))
        }
        self._reader = self._open(data, reader or data.reader)

    def _open(self, data: DataSettings, reader: str) -> BlockReader:
        plan = self._order.needs(self._lanes, self._step)
        window_rows = data.chunk_rows * data.window_chunks
        most = AHEAD_BYTES // max(source.row_bytes for source in self._sources)
        # A window ahead for every lane and source, since all may end at the same step; two where there are few.
        ahead_rows = min(max(2, len(self._taken)) * window_rows, max(most, window_rows))
        if reader == "threads":
            return Threads(self._sources, plan, ahead_rows=ahead_rows, at_once=len(self._taken))
        from raylm.stream.ray_data import RayDataReader

        return RayDataReader(
            self._sources,
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
        if len(self._sources) == 1:
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
        """A micro-batch of rows from several sources or blocks."""
        micro = self._micro
        tokens = np.empty((micro, self._sequence_length), dtype=np.int64)
        lengths = np.empty(micro, dtype=np.int32)
        ids, epochs = np.empty(micro, dtype=np.int64), np.empty(micro, dtype=np.int64)
        starts: list[NDArray[np.int32]] = [_NO_STARTS] * micro
        drawn = self._order.sources_of(lane, self._step)
        for source in np.unique(drawn).tolist():
            places = np.flatnonzero(drawn == source)
            done = 0
            while done < len(places):
                block, rows, first, count = self._take(lane, source, len(places) - done)
                part, where = slice(first, first + count), places[done : done + count]
                tokens[where] = rows.tokens[part]
                lengths[where] = rows.lengths[part]
                ids[where] = self._order.ids(source, block.rows[part])
                epochs[where] = block.epoch
                for place, row in zip(where.tolist(), rows.document_starts[part], strict=True):
                    starts[place] = row
                done += count
        return MicroBatch(lane, tokens, self._labels(tokens, lengths, starts), tuple(starts), ids, epochs)

    def _labels(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int32], starts: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.int64]:
        return _labels(tokens, lengths, starts if self._document_attention else None)

    def _take(self, lane: int, source: int, wanted: int) -> tuple[Block, Rows, int, int]:
        """The lane's next rows of a source, as (block, its rows, first, count); at most `wanted`, at least one."""
        nth = self._taken[lane, source]
        held = self._held[lane, source]
        if held and held[0][0].end <= nth:
            held.popleft()
        while not held:
            # Blocks come in the order of need, so what comes before this one is for this micro-batch too.
            came = self._reader.next()
            assert came is not None, "the plan has no end"
            self._held[came[0].lane, came[0].source].append(came)
        block, rows = held[0]
        assert block.first <= nth < block.end
        count = min(wanted, block.end - nth)
        self._taken[lane, source] = nth + count
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
    sources: Sequence[Dataset],
    *,
    batch: BatchSettings,
    rank: int,
    world_size: int,
    sequences: int | None = None,
    document_attention: bool = False,
) -> Iterator[tuple[MicroBatch, ...]]:
    """One rank's held-out micro-batches, in rounds of at most a global batch; all of them together at any world size.

    `sequences`: how many over all ranks, or as many as there are; None for all. Each source gives its weight's share,
    spread evenly over its rows. Every rank yields as many tuples, and `held_out_turns` says how many micro-batches
    the busiest rank gets. The last micro-batch may have fewer rows.
    """
    check_agreement(sources)
    chosen = _held_out_rows(sources, sequences)
    lanes = batch.lanes
    micro_batches = [chosen[first : first + batch.micro_batch] for first in range(0, len(chosen), batch.micro_batch)]
    for first in range(0, len(micro_batches), lanes):
        round_ = micro_batches[first : first + lanes]
        yield tuple(
            _held_out_batch(sources, lane, round_[lane], document_attention)
            for lane in range(rank, len(round_), world_size)
        )


def held_out_turns(
    sources: Sequence[Dataset], *, batch: BatchSettings, world_size: int, sequences: int | None = None
) -> int:
    """Micro-batches that rank 0, the busiest, gets from `held_out`."""
    count = -(-len(_held_out_rows(sources, sequences)) // batch.micro_batch)
    rounds, rest = divmod(count, batch.lanes)
    return rounds * -(-batch.lanes // world_size) + -(-rest // world_size)


def _held_out_rows(sources: Sequence[Dataset], sequences: int | None) -> list[tuple[int, int]]:
    """(source, row in its held-out split), the same wherever it is asked."""
    there = [source.manifest.held_out_rows for source in sources]
    if not any(there):
        raise DataError(
            "no held-out sequences in " + ", ".join(source.folder.url for source in sources),
            hint="prepare with a larger prepare.held_out, or turn evaluate.every_steps off",
        )
    shares = there
    if sequences is not None and sequences < sum(there):
        weights = quantised([source.weight if count else 0.0 for source, count in zip(sources, there, strict=True)])
        shares = [min(count, sequences * weight // sum(weights)) for count, weight in zip(there, weights, strict=True)]
        # What rounding and short sources left over goes to whoever has rows, in turn.
        while sum(shares) < sequences:
            for source, count in enumerate(there):
                if shares[source] < count and sum(shares) < sequences:
                    shares[source] += 1
    return [
        (source, row * count // share)
        for source, (count, share) in enumerate(zip(there, shares, strict=True))
        for row in range(share)
    ]


def _held_out_batch(
    sources: Sequence[Dataset], lane: int, chosen: Sequence[tuple[int, int]], document_attention: bool
) -> MicroBatch:
    rows = [_held_out_row(sources[source], row) for source, row in chosen]
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.int64)
    lengths = np.concatenate([row.lengths for row in rows])
    starts = tuple(row.document_starts[0] for row in rows)
    firsts = np.concatenate([[0], np.cumsum([source.manifest.held_out_rows for source in sources])])
    ids = np.array([firsts[source] + row for source, row in chosen], dtype=np.int64)
    labels = _labels(tokens, lengths, starts if document_attention else None)
    return MicroBatch(lane, tokens, labels, starts, ids, np.zeros(len(chosen), dtype=np.int64))


def _held_out_row(source: Dataset, row: int) -> Rows:
    for shard in source.manifest.held_out:
        if row < shard.rows:
            return read_checked(source, shard, row, row + 1)
        row -= shard.rows
    raise AssertionError("a row beyond the held-out split")
