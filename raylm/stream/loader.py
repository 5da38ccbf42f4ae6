"""A worker's batches, positioned by the step alone.

The order comes from raylm.stream.lanes; who reads it, threads here or Ray Data, changes no batch.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import numpy as np

from raylm.config.data import DataSettings
from raylm.config.optim import BatchSettings
from raylm.errors import RaylmError
from raylm.records import Batch, MicroBatch
from raylm.shards import Rows, WantedColumn
from raylm.stream.collate import Collator, Part
from raylm.stream.lanes import Block, DatasetRows, Geometry, Order, lanes_of
from raylm.stream.reading import Dataset, check_agreement, reading
from raylm.stream.threads import BlockReader, Threads

__all__ = ["Dataset", "Stream", "StreamSettings", "order_of"]

AHEAD_BYTES = 256 * 2**20  # stored rows read ahead of need by one rank, at most


@dataclass(frozen=True)
class StreamSettings:
    """What decides the batches besides the datasets.

    document_attention: no document predicts the next one's first token. columns: the optional ones that batches carry.
    """

    batch: BatchSettings
    data: DataSettings = field(default_factory=DataSettings)
    seed: int = 0
    document_attention: bool = False
    columns: tuple[WantedColumn, ...] = ()


def order_of(datasets: Sequence[Dataset], settings: StreamSettings) -> Order:
    """The order that these settings give; its fingerprint tells whether two runs see the same batches."""
    rows = [
        DatasetRows(
            tuple(shard.rows for shard in dataset.manifest.train), dataset.weight, tuple(dataset.weight_schedule)
        )
        for dataset in datasets
    ]
    batch, data = settings.batch, settings.data
    geometry = Geometry(batch.sequences, batch.micro_batch, data.chunk_rows, data.window_chunks, settings.seed)
    return Order(rows, geometry)


class Stream:
    """One rank's batches from `start_step` on: an endless iterator, the same whoever reads the shards."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        settings: StreamSettings,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        reader: Literal["ray", "threads"] | None = None,
    ) -> None:
        """`reader` stands for data.reader when given."""
        check_agreement(datasets)
        self._datasets = reading(datasets, settings.columns)
        self._order = order_of(datasets, settings)
        self._lanes = tuple(lanes_of(rank, world_size=world_size, lanes=self._order.lanes))
        self._micro = settings.batch.micro_batch
        self._make = Collator(self._datasets, settings.columns, document_attention=settings.document_attention)
        self._step = start_step
        self._error: RaylmError | None = None
        self._held: dict[tuple[int, int], deque[tuple[Block, Rows]]] = defaultdict(deque)
        self._taken = {
            (lane, dataset): self._order.taken(dataset, lane, start_step)
            for lane in self._lanes
            for dataset in range(len(datasets))
        }
        self._reader = self._open(settings.data, reader or settings.data.reader)

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

    @property
    def blocks_from_ray(self) -> int | None:
        """How many blocks came through Ray Data so far; None where threads read them all."""
        from raylm.stream.ray_data import RayDataReader

        return self._reader.from_ray if isinstance(self._reader, RayDataReader) else None

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
                epochs = np.full(count, block.epoch, dtype=np.int64)
                return self._make.together(lane, rows, part, self._order.ids(0, block.rows[part]), epochs)
            self._taken[lane, 0] -= count
        return self._gathered(lane)

    def _gathered(self, lane: int) -> MicroBatch:
        """A micro-batch of rows from several datasets or blocks."""
        ids, epochs = np.empty(self._micro, dtype=np.int64), np.empty(self._micro, dtype=np.int64)
        drawn = self._order.datasets_of(lane, self._step)
        parts: list[Part] = []
        for dataset in np.unique(drawn).tolist():
            places = np.flatnonzero(drawn == dataset)
            done = 0
            while done < len(places):
                block, rows, first, count = self._take(lane, dataset, len(places) - done)
                part, where = slice(first, first + count), places[done : done + count]
                ids[where] = self._order.ids(dataset, block.rows[part])
                epochs[where] = block.epoch
                parts.append(Part(rows, part, where))
                done += count
        return self._make.gathered(lane, parts, ids, epochs)

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
