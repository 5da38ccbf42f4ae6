"""Blocks read by Ray Data tasks, wherever the cluster has CPUs to spare.

Comes in: a plan of blocks in the order of need. Leaves: their rows, in that order. Ray Data fills and never decides:
its tasks get descriptors and return rows. Threads of this process read until Ray Data is warm (17 to 60 s were seen
on a loaded machine), for as long as the cluster has no free CPU, and from wherever Ray Data could not go on.

Ray Data's scheduler runs in this process, and takes its interpreter's lock over and over for as long as an execution
lasts, also while nothing is left to do but to wait for a slow consumer: one that stayed open halved a trainer's speed.
So each execution brings what is wanted now, is over within a second or so, and the next begins when half is used up.
"""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from raylm.errors import RaylmError
from raylm.runtime.ray_internals import end_execution, quiet_ray_data
from raylm.shards import Rows
from raylm.stream.lanes import Block, RowRange
from raylm.stream.reading import Dataset, Reader
from raylm.stream.threads import Threads

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0  # wait for a block that Ray Data owes, before threads read the next few
STALL_SECONDS = 60.0  # silence after which Ray Data is given up
START_SECONDS = 10.0  # threads alone before: warming up takes seconds from the first steps after a restart
POLL_SECONDS = 1.0  # how often a free CPU is looked for
CPUS = 0.25  # a task's reservation: reading waits more than it computes, and must fit beside the workers
TASKS = 4  # of one rank at once; several ranks' executors share the cluster
WINDOWS_A_TASK = 16  # at 4, a token took nearly twice as long
TASK_BYTES = 64 * 2**20  # of stored tokens, where 16 windows would be more
BLOCKS_A_TASK = 256
_MARGIN_SECONDS = 1.5  # of reading left to threads when Ray Data is warm, until its first blocks are there
_MARGIN_BLOCKS = 1024
_LENT = 4  # blocks that threads read first when Ray Data is late
_PREFIX = "column:"  # of an optional column's name in a task's answer
_RANGE_NUMBERS = 3  # numbers that describe a RowRange


class RayDataReader:
    """Delivers a plan's blocks through Ray Data, and through threads while it cannot."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        plan: Iterator[Block],
        *,
        ahead_rows: int,
        most_rows: int,
        window_rows: int,
        at_once: int = 0,
    ) -> None:
        """Keeps `ahead_rows` ready, and up to `most_rows` for a consumer that empties them; `at_once`: see Threads."""
        self._datasets = tuple(datasets)
        self._ahead_rows = ahead_rows
        self._window_rows = window_rows
        largest = max(dataset.row_bytes for dataset in datasets)
        self._most_rows = max(ahead_rows, most_rows) // 2
        self._task_rows = min(window_rows * WINDOWS_A_TASK, max(window_rows, TASK_BYTES // largest))
        self._task_bytes = self._task_rows * largest
        self._changed = threading.Condition()
        # Guarded by _changed, since both the consumer and the delivering thread take blocks from the plan.
        self._plan = plan
        self._left_to_threads: deque[Block] | None = None  # None until Ray Data takes over what comes after them
        self._owed: deque[Block] = deque()  # handed to Ray Data, and not yet given to the consumer
        self._given = 0  # how many of what was handed to Ray Data the consumer has
        self._ready: deque[tuple[int, Rows | RaylmError]] = deque()  # by number of what was handed to Ray Data
        self._heard = 0.0  # when Ray Data last delivered, or was asked to
        self._failure: str | None = None
        self._closed = False
        self._execution: Any = None
        self._served = 0
        self._lent = 0
        self.from_ray = 0  # blocks that came through Ray Data so far
        self._began = time.monotonic()
        self._threads: Threads | None = Threads(
            datasets, self._until_handover(), ahead_rows=ahead_rows, at_once=at_once
        )
        threading.Thread(target=self._deliver, name="raylm-ray-data", daemon=True).start()

    def next(self) -> tuple[Block, Rows] | None:
        """The plan's next block."""
        while True:
            if self._threads is not None:
                came = self._threads.next()
                if came is not None:
                    self._served += 1
                    return came
                self._threads.close()
                self._threads = None
            came = self._next_from_ray()
            if came is not None:
                return came

    def _next_from_ray(self) -> tuple[Block, Rows] | None:
        """The next block, or None when threads have been told to read it."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure, timeout=PATIENCE_SECONDS)
            if self._ready:
                _, rows = self._ready.popleft()
                block = self._owed.popleft()
                self._given += 1
                self.from_ray += 1
                self._lent = 0
                self._changed.notify_all()
                if isinstance(rows, RaylmError):
                    raise rows
                return block, rows
            silent = time.monotonic() - self._heard > STALL_SECONDS
            if not self._failure and not silent:
                # More each time: Ray Data has to come past what threads read meanwhile, which it reads in vain.
                self._lent = min(max(_LENT, 2 * self._lent), BLOCKS_A_TASK, len(self._owed))
                lent = [self._owed.popleft() for _ in range(self._lent)]
                self._given += len(lent)
                if lent:
                    self._threads = Threads(self._datasets, iter(lent), ahead_rows=self._ahead_rows)
                return None
        self._take_back()
        return None

    def close(self) -> None:
        """Stop the executor and the threads; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads, execution, self._execution = self._threads, self._execution, None
            self._ready.clear()
        if threads is not None:
            threads.close()
        if execution is not None:
            end_execution(execution)

    def _take_back(self) -> None:
        """Let threads read what Ray Data still owes, and all that follows."""
        with self._changed:
            reason = self._failure or f"it gave nothing for {STALL_SECONDS:g} s"
            blocks = itertools.chain(tuple(self._owed), self._plan)
            self._owed.clear()
            self._closed = True
            self._changed.notify_all()
            execution, self._execution = self._execution, None
        log.warning("Ray Data stopped delivering (%s); threads of the worker read the shards from here on", reason)
        if execution is not None:
            # In a thread of its own: ending an execution may take seconds, and a batch is waited for.
            threading.Thread(target=end_execution, args=(execution,), daemon=True).start()
        self._threads = Threads(self._datasets, blocks, ahead_rows=self._ahead_rows)

    def _until_handover(self) -> Iterator[Block]:
        while True:
            with self._changed:
                if self._left_to_threads is None:
                    block = next(self._plan, None)
                else:
                    block = self._left_to_threads.popleft() if self._left_to_threads else None
            if block is None:
                return
            yield block

    def _deliver(self) -> None:
        """Wait for a CPU, warm up, take over, and then keep blocks ready until the stream is closed."""
        try:
            if not self._await_cpu():
                return
            for _ in self._execute([]):
                pass
            self._hand_over()
            number, wanted_rows = 0, max(1, self._ahead_rows // 2)
            while True:
                with self._changed:
                    self._await_use(down_to=wanted_rows)
                    if self._closed:
                        return
                    if number and not self._ready:
                        wanted_rows = min(2 * wanted_rows, self._most_rows)  # the consumer is faster
                    blocks = _up_to(self._plan, wanted_rows)
                    self._owed.extend(blocks)
                    self._heard = time.monotonic()
                for _, rows in zip(blocks, self._execute(blocks), strict=True):
                    self._put(number, rows)
                    number += 1
        except Exception as error:  # Ray Data raises what it likes; threads can always go on
            with self._changed:
                self._failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                self._changed.notify_all()
                if not self._closed and self._left_to_threads is None:
                    log.warning("Ray Data could not start (%s); threads of the worker read the shards", self._failure)

    def _await_cpu(self) -> bool:
        """Wait until it is time and the cluster has room for a task; False without Ray, or when closed before.

        Nothing is submitted before: tasks that cannot run would make an autoscaler add nodes for them.
        """
        import ray

        if not ray.is_initialized():
            log.info("no Ray in this process: threads of the worker read the shards")
            return False
        with self._changed:
            if self._changed.wait_for(lambda: self._closed, timeout=START_SECONDS):
                return False
        while ray.available_resources().get("CPU", 0.0) < CPUS:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, timeout=POLL_SECONDS):
                    return False
        return not self._closed

    def _hand_over(self) -> None:
        """Leave to threads what the consumer takes until Ray Data's first blocks are there; the rest is Ray Data's."""
        with self._changed:
            rate = self._served / max(time.monotonic() - self._began, 0.1)
            margin = min(_MARGIN_BLOCKS, 1 + int(rate * _MARGIN_SECONDS))
            self._left_to_threads = deque(itertools.islice(self._plan, margin))
            self._heard = time.monotonic()

    def _put(self, number: int, rows: Rows | RaylmError) -> None:
        """Keep a delivery for the consumer, unless threads were faster."""
        with self._changed:
            self._heard = time.monotonic()
            if self._closed:
                raise _Closed
            if number >= self._given:
                self._ready.append((number, rows))
                self._changed.notify_all()

    def _await_use(self, *, down_to: int) -> None:
        """Wait, with the lock held, until the consumer has used what is kept down to so many rows."""
        self._changed.wait_for(lambda: self._closed or self._kept_rows() <= down_to)

    def _kept_rows(self) -> int:
        return sum(0 if isinstance(rows, RaylmError) else len(rows.tokens) for _, rows in self._ready)

    def _execute(self, blocks: Sequence[Block]) -> Iterator[Rows | RaylmError]:
        """The blocks' rows, in order, from one Ray Data execution; without blocks it only warms up."""
        import ray
        from ray.data import ExecutionResources, TaskPoolStrategy

        quiet_ray_data()
        # A few blocks are still worth a task for each of those that may run at once.
        share = -(-sum(len(block.rows) for block in blocks) // TASKS)
        task_rows = min(self._task_rows, max(self._window_rows, share))
        tables = [_described(part) for part in _parts(blocks, task_rows)] or [_described([])]
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_no_progress_timeout_s = -1  # a consumer may pause for long; STALL_SECONDS is ours
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(
            cpu=CPUS * TASKS, object_store_memory=2 * TASKS * self._task_bytes
        )
        with ray.data.DataContext.current(context):
            # Not from_arrow: it describes each table in a task that wants a whole CPU.
            execution = ray.data.from_blocks(tables).map_batches(
                _read,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=CPUS,
                compute=TaskPoolStrategy(size=min(TASKS, len(tables))),
                fn_kwargs={"datasets": ray.put(self._datasets)},
            )
            with self._changed:
                if self._closed:
                    return
                self._execution = execution
            for table in execution.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                yield from self._rows_of(table)

    def _rows_of(self, table: pa.Table) -> Iterator[Rows | RaylmError]:
        columns = {name: table.column(name) for name in table.column_names}
        for number in range(table.num_rows):
            buffers = {name: column[number].as_buffer() for name, column in columns.items() if name != "dataset"}
            if buffers["error"].size:
                yield pickle.loads(buffers["error"])
                continue
            manifest = self._datasets[columns["dataset"][number].as_py()].manifest
            tokens = np.frombuffer(buffers["tokens"], dtype=manifest.dtype).reshape(-1, manifest.sequence_length)
            starts = np.frombuffer(buffers["starts"], dtype=np.int32)
            ends = np.cumsum(np.frombuffer(buffers["counts"], dtype=np.int32)).tolist()
            rows = tuple(starts[begin:end] for begin, end in itertools.pairwise([0, *ends]))
            described = self._datasets[columns["dataset"][number].as_py()]
            more = {
                column.name: column.decode(buffers[_PREFIX + column.name], len(tokens), manifest.sequence_length)
                for column in described.columns
            }
            yield Rows(tokens, rows, np.frombuffer(buffers["lengths"], dtype=np.int32), more)


class _Closed(Exception):
    """The consumer has gone."""


def _up_to(plan: Iterator[Block], rows: int) -> list[Block]:
    """The plan's next blocks, until they hold so many rows or the plan ends."""
    blocks: list[Block] = []
    held = 0
    while held < rows and (block := next(plan, None)) is not None:
        blocks.append(block)
        held += len(block.rows)
    return blocks


def _parts(blocks: Sequence[Block], task_rows: int) -> Iterator[list[Block]]:
    """The blocks in portions that are worth a task each."""
    part: list[Block] = []
    rows = 0
    for block in blocks:
        part.append(block)
        rows += len(block.rows)
        if rows >= task_rows or len(part) == BLOCKS_A_TASK:
            yield part
            part, rows = [], 0
    if part:
        yield part


def _described(blocks: Sequence[Block]) -> pa.Table:
    """What a task needs to know of its blocks, a row each."""
    import pyarrow as pa

    def column(values: Callable[[Block], np.ndarray[Any, Any]]) -> pa.Array:
        return pa.array([values(block).astype(np.int64).tobytes() for block in blocks], pa.binary())

    return pa.table(
        {
            "dataset": pa.array([block.dataset for block in blocks], pa.int64()),
            "row_ranges": column(lambda block: np.array([(p.shard, p.start, p.stop) for p in block.row_ranges])),
            "order": column(lambda block: block.order),
        }
    )


def _read(table: pa.Table, *, datasets: Any) -> pa.Table:
    """A read task: descriptors in, rows out; an error for people travels as a row, and so arrives once and whole."""
    import ray

    known: tuple[Dataset, ...] = ray.get(datasets)
    reader = Reader(known)
    described = list(zip(*(table.column(name).to_pylist() for name in ("dataset", "row_ranges", "order")), strict=True))
    if all(dataset.folder.is_local for dataset in known) or len(described) < 2:
        read = [_read_one(reader, *block) for block in described]
    else:
        with ThreadPoolExecutor(min(8, len(described))) as pool:
            read = list(pool.map(lambda block: _read_one(reader, *block), described))
    names = sorted({column.name for dataset in known for column in dataset.columns})
    return _packed([dataset for dataset, _, _ in described], read, names)


def _read_one(reader: Reader, dataset: int, row_ranges: bytes, order: bytes) -> Rows | RaylmError:
    numbers = np.frombuffer(row_ranges, dtype=np.int64).reshape(-1, _RANGE_NUMBERS).tolist()
    try:
        return reader.read(
            dataset, [RowRange(*row_range) for row_range in numbers], np.frombuffer(order, dtype=np.int64)
        )
    except RaylmError as error:
        return error


def _packed(datasets: list[int], read: list[Rows | RaylmError], names: list[str]) -> pa.Table:
    import pyarrow as pa

    def column(values: Callable[[Rows], bytes | memoryview]) -> pa.Array:
        return pa.array([b"" if isinstance(rows, RaylmError) else values(rows) for rows in read], pa.large_binary())

    def optional(name: str) -> pa.Array:
        return column(lambda rows: rows.columns[name].tobytes() if name in rows.columns else b"")

    return pa.table(
        {
            "dataset": pa.array(datasets, pa.int64()),
            "tokens": column(lambda rows: rows.tokens.tobytes()),
            "starts": column(lambda rows: np.concatenate(rows.document_starts).astype(np.int32).tobytes()),
            "counts": column(lambda rows: np.array([len(row) for row in rows.document_starts], np.int32).tobytes()),
            "lengths": column(lambda rows: rows.lengths.astype(np.int32).tobytes()),
            **{_PREFIX + name: optional(name) for name in names},
            "error": pa.array(
                [pickle.dumps(rows) if isinstance(rows, RaylmError) else b"" for rows in read], pa.large_binary()
            ),
        }
    )
