"""What must outlive the workers of one attempt: the run's log, who is in the group, and why it should pause.

Comes in: calls from workers, from Ray Train's controller and from the driver. Leaves: the run folder's files and
the answers that keep all of them in step. One plain object; `launch` puts it behind a Ray actor on the driver's
node, and a run without Ray uses it as it is. It knows nothing of torch or Ray.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from raylm.config.workers import WorkerSettings
from raylm.errors import RaylmError, TrainingError
from raylm.run.log import Line, RunLog
from raylm.storage import StoragePath

# What a driver that looks too seldom can still read.
FEED_LINES = 4096
# Why a group is asked to save and leave; `stop` ends the run, the others restart it at another size.
GROW, NOTICE, STOP = "grow", "preemption_notice", "stop"


@dataclass(frozen=True)
class Seat:
    """One worker's place in one attempt. `address` is rank 0's "host:port", `node` an opaque name of the machine."""

    rank: int
    size: int
    attempt: int
    address: str
    local_rank: int = 0
    node: str = ""


class Coordinator:
    """The run's memory across attempts: generation, seats, requests to leave, failures, log."""

    def __init__(
        self,
        run: StoragePath,
        workers: WorkerSettings,
        *,
        audit: bool = False,
        claim: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = RunLog(run, audit=audit)
        self._workers, self._clock = workers, clock
        self._claim = claim or _counter()
        self._lock = threading.RLock()
        self._attempt = 0
        self._size = 0
        self._address: dict[int, str] = {}
        self._nodes: dict[int, str] = {}
        self._leave: str | None = None
        self._standing = False  # whether a group is there that will hear a request to leave
        self._left: tuple[str, int] | None = None
        self._fatal: RaylmError | None = None
        self._finished = False
        self._best_step = self._log.last_step
        self._last_step = self._log.last_step
        self._committed = 0
        self._failures_in_a_row = 0
        self._failures = 0
        self._lost_at: float | None = None
        self._training_seconds = 0.0
        self._stepped_at: float | None = None
        self._begun_at = self._seated_at = clock()
        self._feed: deque[tuple[str, Line]] = deque(maxlen=FEED_LINES)
        self._fed = 0

    # -- an attempt begins ---------------------------------------------------------------------------------------

    def begin(self, size: int) -> int:
        """Open a new attempt of `size` workers; older attempts can no longer commit. Returns its number."""
        with self._lock:
            self._attempt = self._claim()
            previous, self._size = self._size, size
            self._leave = STOP if self._leave == STOP else None  # asked for while no group could hear it
            self._left = None
            self._standing = False
            self._nodes.clear()
            self._begun_at = self._seated_at = self._clock()
            self._stepped_at = None
            if previous and previous != size:
                self._event("resized", step=self._last_step, workers=size, workers_before=previous)
            return self._attempt

    def attempt(self) -> int:
        """The newest attempt's number."""
        return self._attempt

    def sit(self, attempt: int, rank: int, node: str, address: str | None) -> None:
        """Tell which node a rank runs on; rank 0 also tells the address at which the group meets."""
        with self._lock:
            if attempt == self._attempt:
                self._nodes[rank] = node
                self._standing = True
                if address is not None:
                    self._address = {attempt: address}
                    self._seated_at = self._clock()

    def seats(self) -> list[str]:
        """The node of each rank of the newest attempt."""
        return list(self._nodes.values())

    def address(self, attempt: int) -> str | None:
        """Where attempt `attempt` meets, once rank 0 has told."""
        return self._address.get(attempt)

    def started(self, attempt: int, *, step: int, checkpoint: str | None, phases: dict[str, float]) -> None:
        """The group stands and holds the state of `step`; metrics after it are about to be trained again.

        phases: seconds that rank 0 spent on each part of getting there.
        """
        with self._lock:
            if attempt != self._attempt:
                return
            lost = max(0, self._last_step - step)
            self._log.rewind(step)
            waited = {"decide": self._begun_at - self._lost_at} if self._lost_at is not None else {}
            starting = {"workers": self._seated_at - self._begun_at, **phases}
            self._lost_at = None
            resumed = checkpoint is not None
            self._event(
                "resumed" if resumed else "started",
                step=step,
                workers=self._size,
                attempt=attempt,
                seconds=round(sum(starting.values()), 3),
                since_loss_seconds=round(sum(waited.values()) + sum(starting.values()), 3) if waited else None,
                phases={name: round(seconds, 3) for name, seconds in (waited | starting).items()},
                steps_lost=lost if resumed or lost else None,
                checkpoint=checkpoint,
            )
            self._last_step = step
            self._committed = max(self._committed, step)

    # -- while it runs -------------------------------------------------------------------------------------------

    def metric(self, attempt: int, line: Line) -> None:
        """Record a step of the newest attempt; an older attempt's orphan is not heard."""
        with self._lock:
            if attempt != self._attempt:
                return
            now = self._clock()
            if self._stepped_at is not None:
                self._training_seconds += now - self._stepped_at
            self._stepped_at = now
            self._last_step = line["step"]
            if line["step"] > self._best_step:
                self._best_step = line["step"]
                self._failures_in_a_row = 0
            self._log.metric({**line, "attempt": attempt})
            self._tell("step", line)
        self._log.flush_if_due()

    def audit(self, attempt: int, step: int, rows: Iterable[tuple[int, int, int]]) -> None:
        """Record what one rank trained on in one step."""
        if attempt == self._attempt:
            self._log.audit(step, rows, attempt=attempt)

    def event(self, attempt: int, kind: str, fields: dict[str, Any]) -> None:
        """Record an event of the newest attempt."""
        with self._lock:
            if attempt == self._attempt:
                if kind == "checkpoint_committed":
                    self._committed = max(self._committed, int(fields["step"]))
                self._event(kind, **{"workers": self._size, **fields})

    def flush(self) -> None:
        """Write out everything recorded."""
        self._log.flush()

    def signal(self, attempt: int) -> str | None:
        """Why this attempt should save and leave, or None; `stale` when a newer attempt, or driver, has begun."""
        return "stale" if attempt != self._attempt or self._fatal is not None else self._leave

    def history(self) -> tuple[int, float]:
        """Failures so far, and seconds spent stepping."""
        return self._failures, self._training_seconds

    def step(self) -> int:
        """The last step that the newest attempt finished or started from."""
        return self._last_step

    def waiting(self, fits: int, least: int, needed: dict[str, float]) -> None:
        """Tell that the cluster holds too few workers to go on."""
        with self._lock:
            self._event("waiting", step=self._last_step, workers=0, fits=fits, needs_workers=least, per_worker=needed)

    # -- why it should pause -------------------------------------------------------------------------------------

    def request_stop(self, reason: str, **fields: Any) -> bool:
        """Have the group save and leave at the next step boundary; False when there is none. STOP outlives a group."""
        with self._lock:
            wanted = self._leave != STOP if reason == STOP else self._leave is None and bool(self._nodes)
            if wanted and not self._finished:
                self._leave = reason
                self._event(
                    {GROW: "growth_possible", NOTICE: "preemption_notice", STOP: "stop_asked"}[reason],
                    step=self._last_step,
                    workers=self._size,
                    **fields,
                )
            return self._standing

    def drained(self, nodes: dict[str, float | None]) -> None:
        """Nodes about to be reclaimed, with seconds left where known; asks to leave when one of them hosts a rank."""
        ranks = sorted(rank for rank, node in self._nodes.items() if node in nodes)
        if ranks and self._leave is None:
            known = [left for rank in ranks if (left := nodes[self._nodes[rank]]) is not None]
            self.request_stop(NOTICE, ranks=ranks, grace_seconds=round(min(known), 1) if known else None)

    def left(self, attempt: int, reason: str, step: int) -> None:
        """The group has saved step `step` and leaves on purpose."""
        with self._lock:
            if attempt == self._attempt:
                self._left = (reason, step)
                self._lost_at = self._clock()
                self._log.flush()

    # -- how it ends ---------------------------------------------------------------------------------------------

    def fail(self, attempt: int, error: RaylmError) -> None:
        """An error no restart can mend; the first one counts."""
        with self._lock:
            if self._fatal is None and attempt == self._attempt:
                self._fatal = error
                self._event("failed", step=self._last_step, workers=self._size, message=error.message)
                self._log.flush()

    def superseded(self, by: str) -> None:
        """Another driver trains this run: nothing more is written, and the group ends at its next step."""
        with self._lock:
            self._log.mute()
            if not self._finished:
                self._fatal = TrainingError(
                    f"another `raylm train` of this run has begun, {by}, and goes on in place of this one",
                    hint="give one of the two another name",
                )

    def fatal(self) -> RaylmError | None:
        """The error no restart can mend, if there was one."""
        return self._fatal

    def group_ended(self, losses: dict[int, str]) -> bool:
        """The controller saw ranks end with errors; returns whether another attempt makes sense.

        losses: rank → what happened, one line each.
        """
        with self._lock:
            self._standing = False
            if self._fatal is not None or (self._left and self._left[0] == STOP):
                return False
            if self._left is not None:
                return True
            self._failures += 1
            self._failures_in_a_row += 1
            self._lost_at = self._clock()
            gone = {rank: why for rank, why in losses.items() if why.startswith("lost")} or losses
            self._event(
                "worker_lost",
                step=self._last_step,
                workers=self._size,
                ranks=sorted(gone),
                nodes=sorted({self._nodes.get(rank, "") for rank in gone} - {""}),
                message="; ".join(sorted(set(gone.values())))[:500],
                last_committed=self._committed,
            )
            if self._failures_in_a_row > self._workers.max_failures:
                self.fail(
                    self._attempt,
                    TrainingError(
                        f"{self._failures_in_a_row} failures in a row without a finished step beyond step "
                        f"{self._best_step}; the last: {'; '.join(sorted(set(losses.values())))[:1500]}",
                        hint="mend the cause above, or raise workers.max_failures; the same command resumes",
                    ),
                )
                return False
            return True

    def finish(self, attempt: int, step: int, fields: dict[str, Any]) -> None:
        """The last step is trained and saved."""
        with self._lock:
            if attempt == self._attempt:
                self._finished = True
                self._event("finished", step=step, workers=self._size, **fields)
                self._log.flush()

    def finished(self) -> bool:
        """Whether the last step is trained and saved."""
        return self._finished

    def feed(self, start: int) -> tuple[int, list[tuple[str, Line]]]:
        """Steps and events recorded since position `start`, the newest FEED_LINES at most, and the new position."""
        with self._lock:
            news = min(self._fed - start, len(self._feed))
            return self._fed, list(self._feed)[len(self._feed) - news :]

    def close(self) -> None:
        """Write out everything and let go."""
        self._log.close()

    def _event(self, kind: str, **fields: Any) -> None:
        self._tell("event", self._log.event(kind, **fields))

    def _tell(self, kind: str, line: Line) -> None:
        self._feed.append((kind, line))
        self._fed += 1


def _counter() -> Callable[[], int]:
    numbers = iter(range(1, 1_000_000_000))
    return lambda: next(numbers)
