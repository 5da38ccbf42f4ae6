"""The order of the data: row counts, seed and batch geometry in, the rows of any step of any lane out (pure).

A global batch has G sequences in micro-batches of m, so L = G / m lanes. Sequence i of lane j at step t has the
position p = t·G + j·m + i. Going through the positions, each dataset counts off its epochs: an epoch ends where every
row has had its turn, be that in the middle of a batch, and so each lane's number of rows in an epoch is known from
counts alone. An epoch's rows are the dataset's chunks in a seeded order, cut into one range per lane; a lane walks its
range window by window and shuffles the rows inside each. No step needs to know what came before it, so seeking to a
step costs the same anywhere, and no number of workers appears in it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raylm.errors import ConfigError, DataError
from raylm.stream.mixture import Ints, Mixture, permutation

# No run gets here: a position that stands for "never", small enough for exact arithmetic in int64.
NEVER = 2**52

_CHUNKS, _WINDOW = 1, 2  # streams of random numbers; raylm.stream.mixture uses others
_CACHED_CHUNKS = 1 << 20


@dataclass(frozen=True)
class DatasetRows:
    """One dataset of the mixture: the rows of each of its shards, its weight, and (step, weight) changes to come."""

    shard_rows: tuple[int, ...]
    weight: float = 1.0
    weight_schedule: tuple[tuple[int, float], ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(self.shard_rows)


@dataclass(frozen=True)
class Geometry:
    """What the order depends on besides the datasets."""

    sequences: int
    micro_batch: int
    chunk_rows: int
    window_chunks: int
    seed: int

    @property
    def lanes(self) -> int:
        """Micro-batch slots of a global batch."""
        return self.sequences // self.micro_batch


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of one shard of a dataset."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Block:
    """What a lane reads at once: the next rows it takes from one dataset, all of one epoch.

    `first`: how many rows of the dataset the lane has taken before these. `rows`: their numbers in the dataset, in the
    order they are trained on. `order`: the same as places in the concatenation of `row_ranges`.
    """

    lane: int
    dataset: int
    epoch: int
    first: int
    rows: Ints
    order: Ints
    row_ranges: tuple[RowRange, ...]

    @property
    def end(self) -> int:
        """How many rows of the dataset the lane has taken after these."""
        return self.first + len(self.rows)


@dataclass(frozen=True)
class _Epoch:
    """How one epoch of one dataset is shared out."""

    begins: Ints  # (lanes,) rows of the dataset each lane took before this epoch
    ranges: Ints  # (lanes + 1,) lane j's part of the epoch's row sequence is [ranges[j], ranges[j + 1])
    chunks: Ints  # chunk numbers in this epoch's order
    starts: Ints  # (chunks + 1,) where each chunk begins in the epoch's row sequence


def lanes_of(rank: int, *, world_size: int, lanes: int) -> range:
    """The lanes that a rank owns: those congruent to its rank."""
    return range(rank, lanes, world_size)


class _Chunks:
    """A dataset's rows cut into chunks that do not cross shards: a chunk is a row group wherever sizes agree."""

    def __init__(self, shard_rows: Sequence[int], chunk_rows: int) -> None:
        self.chunk_rows = chunk_rows
        rows = np.array(shard_rows, dtype=np.int64)
        self._shard_rows = rows
        counts = -(-rows // chunk_rows)
        self._first_chunk = np.concatenate([[0], np.cumsum(counts)])
        self._first_row = np.concatenate([[0], np.cumsum(rows)])
        self.count = int(self._first_chunk[-1])

    def sizes(self) -> Ints:
        """Rows of each chunk."""
        sizes = np.full(self.count, self.chunk_rows, dtype=np.int64)
        filled = self._shard_rows > 0
        ends = self._first_chunk[1:][filled] - 1
        sizes[ends] = (self._shard_rows[filled] - 1) % self.chunk_rows + 1
        return sizes

    def locate(self, chunk: int) -> tuple[int, int, int]:
        """(shard, first row in the shard, first row in the dataset) of a chunk."""
        shard = int(np.searchsorted(self._first_chunk, chunk, side="right")) - 1
        start = (chunk - int(self._first_chunk[shard])) * self.chunk_rows
        return shard, start, int(self._first_row[shard]) + start


class Order:
    """Which row every position of the run trains on."""

    def __init__(self, datasets: Sequence[DatasetRows], geometry: Geometry) -> None:
        for number, dataset in enumerate(datasets):
            if dataset.rows == 0:
                raise DataError(
                    f"dataset {number} has no rows to train on",
                    hint="prepare it with more text, or lower prepare.held_out",
                )
        if geometry.sequences % geometry.micro_batch:
            raise ConfigError(
                f"batch.micro_batch={geometry.micro_batch} does not divide batch.sequences={geometry.sequences}",
                hint="choose a micro-batch that divides the global batch",
            )
        self.datasets = tuple(datasets)
        self.geometry = geometry
        self.lanes = geometry.lanes
        self._window_rows = geometry.chunk_rows * geometry.window_chunks
        self._mixture = Mixture(
            [((0, dataset.weight), *dataset.weight_schedule) for dataset in datasets],
            lanes=self.lanes,
            micro_batch=geometry.micro_batch,
            seed=geometry.seed,
        )
        self._chunks = [_Chunks(dataset.shard_rows, geometry.chunk_rows) for dataset in datasets]
        self._first_id = np.concatenate([[0], np.cumsum([dataset.rows for dataset in datasets])])
        self._every_lane = np.arange(self.lanes, dtype=np.int64)
        self._epochs: list[OrderedDict[int, _Epoch]] = [OrderedDict() for _ in datasets]
        self._boundaries: list[OrderedDict[int, int]] = [OrderedDict() for _ in datasets]

    def ids(self, dataset: int, rows: Ints) -> Ints:
        """The numbers over all datasets of a dataset's rows."""
        numbers: Ints = rows + self._first_id[dataset]
        return numbers

    def datasets_of(self, lane: int, step: int) -> Ints:
        """(micro_batch,) the dataset of each sequence of the lane's micro-batch at `step`."""
        return self._mixture.datasets_of(lane, step)

    def taken(self, dataset: int, lane: int, step: int) -> int:
        """How many rows of `dataset` the lane takes before `step`."""
        return self._mixture.before_slot(dataset, lane, step * self.geometry.micro_batch)

    def micro_batch(self, lane: int, step: int) -> tuple[Ints, Ints]:
        """(ids, epochs) of the lane's micro-batch at `step`, without reading anything."""
        ids = np.empty(self.geometry.micro_batch, dtype=np.int64)
        epochs = np.empty(self.geometry.micro_batch, dtype=np.int64)
        datasets = self.datasets_of(lane, step)
        for dataset in np.unique(datasets):
            places = np.flatnonzero(datasets == dataset)
            nth, done = self.taken(int(dataset), lane, step), 0
            while done < len(places):
                block = self.block(int(dataset), lane, nth + done)
                assert block is not None
                part = block.rows[nth + done - block.first :][: len(places) - done]
                ids[places[done : done + len(part)]] = self.ids(int(dataset), part)
                epochs[places[done : done + len(part)]] = block.epoch
                done += len(part)
        return ids, epochs

    def needs(self, lanes: Sequence[int], step: int) -> Iterator[Block]:
        """Every block that `lanes` read from `step` on, in the order in which their first rows are needed; endless."""
        heap: list[tuple[int, int, int, int]] = []

        def push(dataset: int, lane: int, nth: int) -> None:
            slot = self._mixture.slot(dataset, lane, nth)
            if slot is not None:
                heapq.heappush(heap, (self._position(lane, slot), lane, dataset, nth))

        for lane in lanes:
            for dataset in range(len(self.datasets)):
                push(dataset, lane, self.taken(dataset, lane, step))
        while heap:
            _, lane, dataset, nth = heapq.heappop(heap)
            block = self.block(dataset, lane, nth)
            assert block is not None
            yield block
            push(dataset, lane, block.end)

    def block(self, dataset: int, lane: int, nth: int) -> Block | None:
        """The block that holds the lane's nth row of `dataset` (from 0), or None if the mixture never asks for it."""
        slot = self._mixture.slot(dataset, lane, nth)
        if slot is None:
            return None
        number = self._count(dataset, self._position(lane, slot)) // self.datasets[dataset].rows
        epoch = self._epoch(dataset, number)
        low, high = int(epoch.ranges[lane]), int(epoch.ranges[lane + 1])
        begins = int(epoch.begins[lane])
        # Windows lie on one grid over the epoch, so that two lanes share a chunk only where their ranges meet.
        window = (low + nth - begins) // self._window_rows
        start, stop = max(low, window * self._window_rows), min(high, (window + 1) * self._window_rows)
        row_ranges, rows = self._read(dataset, epoch, start, stop)
        order = permutation(
            stop - start, seed=self.geometry.seed, stream=_WINDOW, dataset=dataset, at=(window, lane, number)
        )
        return Block(lane, dataset, number, begins + start - low, rows[order], order, row_ranges)

    def _position(self, lane: int, slot: int) -> int:
        step, place = divmod(slot, self.geometry.micro_batch)
        return step * self.geometry.sequences + lane * self.geometry.micro_batch + place

    def _slots(self, position: int) -> Ints:
        """How many of each lane's slots stand before `position`."""
        step, rest = divmod(position, self.geometry.sequences)
        micro_batch = self.geometry.micro_batch
        return step * micro_batch + np.clip(rest - self._every_lane * micro_batch, 0, micro_batch)

    def _counts(self, dataset: int, position: int) -> Ints:
        """How many rows of `dataset` each lane takes before `position`."""
        return self._mixture.before(dataset, self._every_lane, self._slots(position))

    def _count(self, dataset: int, position: int) -> int:
        if len(self.datasets) == 1:
            return position
        return int(self._counts(dataset, position).sum())

    def _boundary(self, dataset: int, epoch: int) -> int:
        """The first position at which `epoch` earlier epochs of `dataset` are through; NEVER if that never comes."""
        target = epoch * self.datasets[dataset].rows
        if len(self.datasets) == 1 or target == 0:
            return min(target, NEVER)
        known = self._boundaries[dataset]
        if epoch not in known:
            low = known.get(epoch - 1, 0)
            known[epoch] = self._search(dataset, target, low)
            if len(known) > 4096:
                known.popitem(last=False)
        return known[epoch]

    def _search(self, dataset: int, target: int, low: int) -> int:
        """The smallest position before which `dataset` gave `target` rows, which is not below `low`."""
        width = max(1, target - self._count(dataset, low))
        while low + width < NEVER and self._count(dataset, low + width) < target:
            low, width = low + width, width * 2
        high = min(low + width, NEVER)
        if self._count(dataset, high) < target:
            return NEVER
        while low < high:
            middle = (low + high) // 2
            if self._count(dataset, middle) < target:
                low = middle + 1
            else:
                high = middle
        return high

    def _epoch(self, dataset: int, number: int) -> _Epoch:
        known = self._epochs[dataset]
        if number in known:
            known.move_to_end(number)
            return known[number]
        begins = self._counts(dataset, self._boundary(dataset, number))
        ends = self._counts(dataset, self._boundary(dataset, number + 1))
        ranges = np.concatenate([[0], np.cumsum(ends - begins)])
        chunks = self._chunks[dataset]
        drawn = permutation(chunks.count, seed=self.geometry.seed, stream=_CHUNKS, dataset=dataset, at=(0, 0, number))
        starts = np.concatenate([[0], np.cumsum(chunks.sizes()[drawn])])
        known[number] = _Epoch(begins, ranges, drawn, starts)
        # Two epochs of a large dataset are alive where one ends; of a tiny one, many in each batch.
        if len(known) > max(2, min(1024, _CACHED_CHUNKS // chunks.count)):
            known.popitem(last=False)
        return known[number]

    def _read(self, dataset: int, epoch: _Epoch, start: int, stop: int) -> tuple[tuple[RowRange, ...], Ints]:
        """The shard rows that hold [start, stop) of the epoch's row sequence, and their numbers in the dataset."""
        chunks = self._chunks[dataset]
        first = int(np.searchsorted(epoch.starts, start, side="right")) - 1
        last = int(np.searchsorted(epoch.starts, stop, side="left"))
        row_ranges: list[RowRange] = []
        numbers: list[Ints] = []
        for place in range(first, last):
            shard, shard_row, dataset_row = chunks.locate(int(epoch.chunks[place]))
            begin = int(epoch.starts[place])
            skip, end = max(start - begin, 0), min(stop, int(epoch.starts[place + 1])) - begin
            row_range = RowRange(shard, shard_row + skip, shard_row + end)
            if row_ranges and row_ranges[-1].shard == shard and row_ranges[-1].stop == row_range.start:
                row_range = RowRange(shard, row_ranges.pop().start, row_range.stop)
            row_ranges.append(row_range)
            numbers.append(np.arange(dataset_row + skip, dataset_row + end))
        return tuple(row_ranges), np.concatenate(numbers)
