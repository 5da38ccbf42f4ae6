"""A run's record across generations: what may be reported, and what becomes of it in log, feed and clock.

One plain object that knows nothing of torch or Ray. The hub puts it behind a Ray actor, a run without Ray calls it
directly. Who is in a generation is decided in `rounds`. Storage is never waited for with the lock held: what is
recorded there is only noted, and written afterwards.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raylm.coordination.contract import FailureHistory, Fence, Generation, Reason, RunStatus
from raylm.coordination.feed import Feed
from raylm.errors import RaylmError, TrainingError
from raylm.run.events import (
    CheckpointCommitted,
    Evaluated,
    Event,
    Failed,
    Finished,
    Resized,
    Resumed,
    Started,
    StopRequested,
)
from raylm.run.folder import RunFolder
from raylm.run.log import RunLog
from raylm.run.metrics import AuditLine, StepMetrics
from raylm.run.notes import Notes, stamped

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # for what is to be written
WRITE_AGAIN_SECONDS = 1.0  # after the record could not be written


class Coordinator:
    """A run's memory across generations; the one implementation of both sides of the contract in `coordination`."""

    def __init__(
        self,
        run: RunFolder,
        *,
        audit: bool = False,
        claim: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = RunLog(run, audit=audit)
        self._notes = Notes()  # of lines for the log
        self._claim = claim or _counter()
        self._lock = threading.RLock()
        self._claiming = threading.Lock()
        self._times = _Times(clock)
        self._feed = Feed()
        self._fence = Fence(self._claim())  # from now on no earlier driver of this run can commit
        self._fenced = Generation(0)  # the generation that holds it
        self._generation = Generation(0)
        self._size = 0
        self._error: RaylmError | None = None
        self._finished = False
        self._stopped = False  # as requested
        self._stop_requested = self._superseded = False
        self._failures = 0
        self.last_step = self._log.last_step
        self.evaluated = self.committed = 0
        self.redone = 0  # micro-batches that the members of the last generation have thrown away

    # -- a generation begins -------------------------------------------------------------------------------------

    @property
    def first_generation(self) -> Generation:
        """The number of this driver's first generation, higher than those of every driver before."""
        return Generation(max(int(self._fence), self._log.last_attempt + 1))

    def begin(
        self, size: int, generation: Generation | None = None, phases: Mapping[str, float] | None = None
    ) -> Generation:
        """A generation of `size` members begins; older ones are not heard any more. phases: seconds it took so far."""
        with self._lock:
            before = self._size
            following = Generation(self._generation + 1 if self._generation else self.first_generation)
            self._generation = generation if generation is not None else following
            self._size = size
            self._times.begun(phases or {})
            if before and before != size:
                self._record(Resized(workers_before=before))
            return self._generation

    def is_current(self, generation: Generation | None) -> bool:
        """Whether this is the newest generation: others are not heard."""
        return generation == self._generation

    def fence(self, generation: Generation) -> Fence:
        """The right to commit as this generation, claimed when it is first asked for: older ones end with that."""
        with self._claiming:  # of two generations the newer one holds the newer fence
            with self._lock:
                first = not self._fenced
                if not self.is_current(generation):
                    return Fence(0)
                if self._fenced == generation or first:
                    self._fenced = generation
                    return self._fence
            claimed = Fence(self._claim())
            with self._lock:
                self._fence, self._fenced = claimed, generation
            return claimed

    def started(
        self, generation: Generation, *, step: int, checkpoint: str | None, phases: Mapping[str, float]
    ) -> None:
        """The group holds the state of `step`; metrics after it are about to be trained again."""
        with self._lock:
            if not self.is_current(generation):
                return
            again, self.last_step = max(0, self.last_step - step), step
            redone, self.redone = self.redone, 0
            if checkpoint is not None:
                self.committed = max(self.committed, step)
            self._notes.add(lambda: self._log.rewind(step))
            starting, since_loss = self._times.started(phases)
            resumed = checkpoint is not None or since_loss is not None or step > 0
            self._record(
                (Resumed if resumed else Started)(
                    attempt=generation,
                    seconds=round(sum(starting.values()), 3),
                    since_loss_seconds=since_loss,
                    phases={name: round(seconds, 3) for name, seconds in starting.items()},
                    steps_lost=again if resumed or again else None,
                    micro_batches_redone=redone or None,
                    checkpoint=checkpoint,
                )
            )
        self._write()

    # -- while it trains -----------------------------------------------------------------------------------------

    def report_metric(self, generation: Generation, metrics: StepMetrics) -> None:
        """Record a finished step of the newest generation; an older one's is not heard."""
        with self._lock:
            if not self.is_current(generation):
                return
            self.last_step = metrics.step
            self._times.stepped()
            line = stamped(replace(metrics, attempt=generation))
            self._feed.add(line)
            self._notes.add(lambda: self._log.metric(line))
        self._write()

    def report_audit(self, generation: Generation, step: int, rows: Sequence[tuple[int, int, int]]) -> None:
        """Record the (lane, sequence id, epoch) of all that one step trained on."""
        with self._lock:
            if self.is_current(generation):
                line = stamped(AuditLine(step=step, attempt=generation, rows=rows))
                self._notes.add(lambda: self._log.audit(line))
        self._write()

    def report_event(self, generation: Generation, event: Event) -> None:
        """Record an event of the newest generation, or that one who has left it committed a step that stands."""
        with self._lock:
            stands = isinstance(event, CheckpointCommitted) and event.step <= self.last_step
            if self.is_current(generation) or stands:
                if isinstance(event, CheckpointCommitted):
                    self.committed = max(self.committed, event.step)
                if isinstance(event, Evaluated):
                    self.evaluated = event.step
                self._record(event, step=event.step)
        self._write()

    def record(self, event: Event) -> None:
        """Record what happened to the run, at the last step."""
        with self._lock:
            self._record(event)
        self._write()

    def flush(self) -> None:
        """Return when all that was reported before can be read in the run folder."""
        self._notes.write()
        self._log.flush()

    def history(self) -> FailureHistory:
        """What the run went through so far."""
        return FailureHistory(self._failures, self._times.training_seconds)

    def lost(self, *, failure: bool) -> None:
        """A generation ended; a failure when nobody had asked for it."""
        with self._lock:
            self._failures += failure
            self._times.lost()

    # -- how it ends ---------------------------------------------------------------------------------------------

    def request_stop(self) -> bool:
        """Note the request; whether a group hears it is known to whoever overrides this."""
        with self._lock:
            if not self._stop_requested:
                self._stop_requested = True
                self._record(StopRequested())
            return self._size > 0

    def stopped(self, generation: Generation, reason: Reason, step: int) -> None:
        """The group has saved `step` and ends, as requested."""
        with self._lock:
            if not self.is_current(generation):
                return
            self._stopped = self._stopped or reason is Reason.STOP
        self.flush()

    def superseded(self, by: str) -> None:
        """Another driver trains this run: nothing more is written, and the group ends at its next step."""
        with self._lock:
            self._log.mute()
            self._superseded = True
            if not self._finished:
                self._error = TrainingError(
                    f"another `raylm train` of this run has begun, {by}, and goes on in place of this one",
                    hint="give one of the two another name",
                )

    def fail(self, generation: Generation | None, error: RaylmError) -> None:
        """Report an error that nothing but a person can mend; the first one counts."""
        if generation is None or self.is_current(generation):
            self._fail(error)
            self.flush()

    def finish(self, generation: Generation, step: int, *, tokens: int, sequences: int) -> None:
        """The last step is trained and saved."""
        with self._lock:
            if not self.is_current(generation):
                return
            self._finished = True
            self._record(Finished(tokens=tokens, sequences=sequences), step=step)
        self.flush()

    @property
    def over(self) -> bool:
        """Whether nothing is left to train here: finished, stopped as requested, or failed."""
        return self._finished or self._stopped or self._error is not None

    def status(self) -> RunStatus:
        """Where the run stands."""
        return RunStatus(self.last_step, self._finished, self._error, ended=self.over)

    def feed(self, start: int) -> tuple[int, list[StepMetrics | Event]]:
        """Steps and events recorded since position `start`, and the new position."""
        return self._feed.since(start)

    def close(self) -> None:
        """Write out everything and let go."""
        self._notes.write()
        self._log.close()

    def _fail(self, error: RaylmError) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
                self._record(Failed(message=error.message))

    def _write(self) -> None:
        """Write what was noted; not for when the lock is held."""
        self._notes.write()
        self._log.flush_if_due()

    def _record(self, event: Event, step: int | None = None) -> None:
        """Note an event, at the last step unless it says otherwise, of the newest group's size where it names none."""
        event = replace(
            event,
            step=self.last_step if step is None else step,
            workers=self._size if event.workers is None else event.workers,
        )
        line = stamped(event)
        self._feed.add(line)
        self._notes.add(lambda: self._log.event(line))


class BackgroundCoordinator(Coordinator):
    """One whose record is written by a thread of its own, which is to run `_writes`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._closed = threading.Event()
        self._noted = threading.Event()  # something is to be written

    def _write(self) -> None:
        self._noted.set()

    def _writes(self) -> None:
        """Write what was noted; what storage does not take is tried again."""
        while not self._closed.is_set():
            self._noted.wait(LOOK_SECONDS)
            self._noted.clear()
            try:
                super()._write()
            except RaylmError as error:
                log.warning("the record of the run cannot be written: %s", error)
                self._closed.wait(WRITE_AGAIN_SECONDS)


class _Times:
    """When the parts of a start happened, and how long the run trained."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lost_at: float | None = None  # the end of the generation before
        self._began_at = clock()  # of what the next generation's start is counted from
        self._before: dict[str, float] = {}
        self._stepped_at: float | None = None
        self.training_seconds = 0.0

    def begun(self, phases: Mapping[str, float]) -> None:
        """A generation began: its members were named, after so many seconds for each part of that."""
        self._before = dict(phases) or {"gather": self._clock() - (self._lost_at or self._began_at)}
        self._stepped_at = None

    def started(self, phases: Mapping[str, float]) -> tuple[dict[str, float], float | None]:
        """The seconds of each part of the start, and their sum when another generation had ended before."""
        lost_at, self._lost_at = self._lost_at, None
        parts = {**self._before, **phases}
        return parts, None if lost_at is None else round(self._clock() - lost_at, 3)

    def stepped(self) -> None:
        """A step ended."""
        now = self._clock()
        self.training_seconds += now - self._stepped_at if self._stepped_at is not None else 0.0
        self._stepped_at = now

    def lost(self) -> None:
        """A generation ended."""
        if self._lost_at is None:
            self._lost_at = self._clock()


def _counter() -> Callable[[], int]:
    numbers = iter(range(1, 1_000_000_000))
    return lambda: next(numbers)
