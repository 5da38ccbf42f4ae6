"""Blocks read by Ray Data tasks, wherever the cluster has CPUs to spare.

Ray Data fills and never decides: its tasks get descriptors of blocks and return rows. Threads of this process read
until Ray Data is warm (17 to 60 s were seen on a loaded machine), for as long as the cluster has no free CPU, and from
wherever Ray Data could not go on.

Ray Data's scheduler runs in this process, and takes its interpreter's lock over and over for as long as an execution
lasts, also while nothing is left to do but to wait for a slow consumer: one that stayed open halved a trainer's speed.
So each execution brings what is wanted now, is over within a second or so, and the next begins when half is used up.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raylm.errors import RaylmError
from raylm.runtime.ray_internals import end_execution, quiet_ray_data
from raylm.shards import Rows
from raylm.stream.handover import Handover, Lent, Limits, Phase
from raylm.stream.lanes import Block
from raylm.stream.ray_tasks import described_blocks, read_blocks, rows_in
from raylm.stream.reading import Dataset
from raylm.stream.threads import Threads

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
_PACKAGE = Path(__file__).resolve().parents[1]


class RayDataReader:
    """Delivers a plan's blocks through Ray Data, and through threads while it cannot, as a `Handover` decides."""

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
        self._task_rows = min(window_rows * WINDOWS_A_TASK, max(window_rows, TASK_BYTES // largest))
        self._task_bytes = self._task_rows * largest
        limits = Limits(
            ahead_rows,
            max(ahead_rows, most_rows) // 2,
            late_seconds=PATIENCE_SECONDS,
            silent_seconds=STALL_SECONDS,
            most_lent_blocks=BLOCKS_A_TASK,
        )
        self._handover = Handover(plan, limits)
        self._opening = threading.Lock()  # between the start of an execution and the end of all
        self._execution: Any = None
        self.from_ray = 0  # blocks that came through Ray Data so far
        blocks = self._handover.for_threads()
        self._threads: Threads | None = Threads(datasets, blocks, ahead_rows=ahead_rows, at_once=at_once)
        threading.Thread(target=self._run, name="raylm-ray-data", daemon=True).start()

    def next(self) -> tuple[Block, Rows] | None:
        """The plan's next block."""
        while True:
            if self._threads is not None:
                came = self._threads.next()
                if came is not None:
                    self._handover.served()
                    return came
                self._threads.close()
                self._threads = None
            taken = self._handover.take()
            if isinstance(taken, Lent):
                self._lend(taken)
                continue
            block, rows = taken
            self.from_ray += 1
            if isinstance(rows, RaylmError):
                raise rows
            return block, rows

    def close(self) -> None:
        """Stop the executor and the threads; safe to call twice."""
        self._handover.close()
        if self._threads is not None:
            self._threads.close()
        self._end_execution()

    def _lend(self, lent: Lent) -> None:
        """Have threads read these blocks."""
        if lent.given_up is not None:
            log.warning(
                "Ray Data stopped delivering (%s); threads of the worker read the shards from here on", lent.given_up
            )
            # In a thread of its own: ending an execution may take seconds, and a batch is waited for.
            threading.Thread(target=self._end_execution, daemon=True).start()
        self._threads = Threads(self._datasets, lent.blocks, ahead_rows=self._ahead_rows)

    def _end_execution(self) -> None:
        with self._opening:
            execution, self._execution = self._execution, None
        if execution is not None:
            end_execution(execution)

    def _run(self) -> None:
        """Deliver in a thread of its own, and report how that ended."""
        try:
            self._deliver()
        except Exception as error:  # Ray Data raises what it likes, and threads can go on; our own faults are passed on
            if _is_ours(error):
                self._handover.crash(error)
            else:
                self._fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    def _fail(self, reason: str) -> None:
        if self._handover.fail(reason) is Phase.WARMING:
            log.warning("Ray Data could not start (%s); threads of the worker read the shards", reason)

    def _deliver(self) -> None:
        """Wait for a CPU, warm up, take over, and then keep blocks ready until the stream is closed."""
        if not self._await_cpu():
            return
        for _ in self._execute([]):
            pass
        self._handover.begin()
        while (blocks := self._handover.ask()) is not None:
            given = 0
            for rows in self._execute(blocks):
                if not self._handover.put(rows):
                    return
                given += 1
            if given < len(blocks):
                self._fail(f"an execution ended after {given} of {len(blocks)} blocks")
                return

    def _await_cpu(self) -> bool:
        """Wait until it is time and the cluster has room for a task; False without Ray, or when closed before.

        Nothing is submitted before: tasks that cannot run would make an autoscaler add nodes for them.
        """
        import ray

        if not ray.is_initialized():
            log.info("no Ray in this process: threads of the worker read the shards")
            return False
        if self._handover.closed_within(START_SECONDS):
            return False
        while ray.available_resources().get("CPU", 0.0) < CPUS:
            if self._handover.closed_within(POLL_SECONDS):
                return False
        return True

    def _execute(self, blocks: Sequence[Block]) -> Iterator[Rows | RaylmError]:
        """The blocks' rows, in order, from one Ray Data execution; without blocks it only warms up."""
        import ray
        from ray.data import ExecutionResources, TaskPoolStrategy

        quiet_ray_data()
        # A few blocks are still worth a task for each of those that may run at once.
        share = -(-sum(len(block.rows) for block in blocks) // TASKS)
        task_rows = min(self._task_rows, max(self._window_rows, share))
        tables = [described_blocks(part) for part in _parts(blocks, task_rows)] or [described_blocks([])]
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
                read_blocks,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=CPUS,
                compute=TaskPoolStrategy(size=min(TASKS, len(tables))),
                fn_kwargs={"datasets": ray.put(self._datasets)},
            )
            with self._opening:
                if self._handover.phase in (Phase.CLOSED, Phase.GIVEN_UP):
                    return
                self._execution = execution
            for table in execution.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                yield from rows_in(table, self._datasets)


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by this package's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_PACKAGE)


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
