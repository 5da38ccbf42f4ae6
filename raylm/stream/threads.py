"""Whoever brings a plan's blocks, in its order: threads of this process here, Ray Data in raylm.stream.ray_data."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from raylm.shards import Rows
from raylm.stream.lanes import Block
from raylm.stream.reading import Dataset, Reader

_LOCAL_THREADS = 4
_REMOTE_THREADS = 16


class BlockReader(Protocol):
    """Brings the blocks of a plan, in its order."""

    def next(self) -> tuple[Block, Rows] | None: ...
    def close(self) -> None: ...


class Threads:
    """Reads blocks in threads of this process, ahead of need and within a bound."""

    def __init__(
        self, datasets: Sequence[Dataset], plan: Iterator[Block], *, ahead_rows: int, at_once: int = 0
    ) -> None:
        """`at_once`: how many blocks the first batch takes; nothing is read ahead that would slow them down."""
        self._reader = Reader(datasets)
        self._plan = plan
        self._ahead_rows = ahead_rows
        self._at_once = at_once
        self._begun = 0
        local = all(dataset.folder.is_local for dataset in datasets)
        threads = min(_LOCAL_THREADS, os.cpu_count() or 1) if local else _REMOTE_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="raylm-read")
        self._coming: deque[tuple[Block, Future[Rows]]] = deque()
        self._coming_rows = 0

    def next(self) -> tuple[Block, Rows] | None:
        """The plan's next block, or None where the plan ends."""
        self._read_ahead()
        if not self._coming:
            return None
        block, future = self._coming.popleft()
        self._coming_rows -= len(block.rows)
        rows = future.result()
        if not self._coming:
            self._at_once = 0
        self._read_ahead()
        return block, rows

    def close(self) -> None:
        """Give up what is not read yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._coming.clear()

    def _read_ahead(self) -> None:
        while not self._coming or (
            self._begun < self._at_once if self._at_once else self._coming_rows < self._ahead_rows
        ):
            block = next(self._plan, None)
            if block is None:
                return
            self._coming.append(
                (block, self._pool.submit(self._reader.read, block.dataset, block.row_ranges, block.order))
            )
            self._coming_rows += len(block.rows)
            self._begun += 1
