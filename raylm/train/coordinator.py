"""What must outlive the workers of one attempt: the run's record, who is in the group, and why it should end.

One plain object that knows nothing of torch or Ray; `launch` puts it behind a Ray actor on the driver's node, and a
run without Ray calls it directly. `membership` decides; here is what surrounds the decisions: log, feed, clock, lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from raylm.config.workers import WorkerSettings
from raylm.errors import RaylmError, TrainingError
from raylm.run.events import (
    AuditLine,
    CheckpointCommitted,
    Event,
    Failed,
    Finished,
    GrowthPossible,
    PreemptionNotice,
    Resized,
    Resumed,
    ShrinkRequested,
    Started,
    StepMetrics,
    StopRequested,
    Waiting,
    WorkerLost,
)
from raylm.run.folder import RunFolder
from raylm.run.log import RunLog
from raylm.train.coordination import Assignment, FailureHistory, Generation, Reason, RunStatus
from raylm.train.feed import Feed
from raylm.train.membership import Membership, culprits


class Coordinator:
    """A run's memory across attempts; the one implementation of both sides of the contract in `coordination`."""

    def __init__(
        self,
        run: RunFolder,
        workers: WorkerSettings,
        *,
        audit: bool = False,
        claim: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = RunLog(run, audit=audit)
        self._claim = claim or _counter()
        self._lock = threading.RLock()
        self._membership = Membership(max_failures=workers.max_failures, best_step=self._log.last_step)
        self._times = _Times(clock)
        self._feed = Feed()

    # -- a group begins ------------------------------------------------------------------------------------------

    def begin(self, size: int) -> Assignment:
        """Begin an attempt of `size` workers; older ones are not heard any more and may not commit."""
        with self._lock:
            before = self._membership.size
            assignment = self._membership.begin(self._claim(), size)
            self._times.begun()
            if before and before != size:
                self._record(Resized(workers_before=before))
            return assignment

    def assignment(self) -> Assignment:
        """What the newest attempt's workers belong to."""
        return self._membership.assignment

    def register(self, generation: Generation, rank: int, node: str, address: str | None) -> None:
        """Become a member; rank 0 also gives the address at which the group meets."""
        with self._lock:
            if self._membership.register(generation, rank, node, address) and address is not None:
                self._times.registered()

    def nodes(self) -> list[str]:
        """The node of each member of the newest generation."""
        with self._lock:
            return list(self._membership.nodes.values())

    def address(self, generation: Generation) -> str | None:
        """Where a generation meets, once its rank 0 has registered."""
        return self._membership.address(generation)

    def started(
        self, generation: Generation, *, step: int, checkpoint: str | None, phases: Mapping[str, float]
    ) -> None:
        """The group holds the state of `step`, from `checkpoint`; metrics after it are about to be trained again."""
        with self._lock:
            again = self._membership.started(generation, step)
            if again is None:
                return
            self._log.rewind(step)
            starting, since_loss = self._times.started(phases)
            event = (Started if checkpoint is None else Resumed)(
                attempt=self._membership.assignment.attempt,
                seconds=round(sum(starting.values()) - starting.get("decide", 0.0), 3),
                since_loss_seconds=since_loss,
                phases={name: round(seconds, 3) for name, seconds in starting.items()},
                steps_lost=again if checkpoint is not None or again else None,
                checkpoint=checkpoint,
            )
            self._record(event)

    # -- while it trains -----------------------------------------------------------------------------------------

    def report_metric(self, generation: Generation, metrics: StepMetrics) -> None:
        """Record a finished step of the newest generation; an older one's is not heard."""
        with self._lock:
            if not self._membership.stepped(generation, metrics.step):
                return
            self._times.stepped()
            self._feed.add(self._log.metric(replace(metrics, attempt=self._membership.assignment.attempt)))
        self._log.flush_if_due()

    def report_audit(self, generation: Generation, step: int, rows: Sequence[tuple[int, int, int]]) -> None:
        """Record the (lane, sequence id, epoch) of all that one step trained on."""
        if self._membership.is_current(generation):
            self._log.audit(AuditLine(step=step, attempt=self._membership.assignment.attempt, rows=rows))

    def report_event(self, generation: Generation, event: Event) -> None:
        """Record an event of the newest generation."""
        with self._lock:
            if self._membership.is_current(generation):
                if isinstance(event, CheckpointCommitted):
                    self._membership.committed = max(self._membership.committed, event.step)
                self._record(event, step=event.step)

    def flush(self) -> None:
        """Return when all that was reported before can be read in the run folder."""
        self._log.flush()

    def history(self) -> FailureHistory:
        """What the run went through so far."""
        return FailureHistory(self._membership.failures, self._times.training_seconds)

    def waiting(self, *, fits: int, needs_workers: int, per_worker: Mapping[str, float]) -> None:
        """Record that the cluster has the capacity for too few workers to go on."""
        with self._lock:
            self._record(Waiting(workers=0, fits=fits, needs_workers=needs_workers, per_worker=dict(per_worker)))

    # -- why it should end ---------------------------------------------------------------------------------------

    def request_stop(self, reason: Reason, *, capacity: int | None = None) -> bool:
        """Have the group save and end at its next step; False when no group is there to hear it."""
        others: dict[Reason, Event] = {Reason.GROW: GrowthPossible(capacity=capacity), Reason.SHRINK: ShrinkRequested()}
        return self._request(reason, others.get(reason, StopRequested()))

    def drained(self, nodes: Mapping[str, float | None]) -> None:
        """Nodes about to be reclaimed, with seconds left where known: a group with a member on one is asked to end."""
        with self._lock:
            ranks = self._membership.ranks_on(nodes)
            if ranks:
                known = [left for rank in ranks if (left := nodes[self._membership.nodes[rank]]) is not None]
                grace_seconds = round(min(known), 1) if known else None
                self._request(Reason.PREEMPTION_NOTICE, PreemptionNotice(ranks=ranks, grace_seconds=grace_seconds))

    def stop_requested(self, generation: Generation) -> Reason | None:
        """Why this generation should save and end, if it should."""
        return self._membership.stop_requested(generation)

    def stopped(self, generation: Generation, reason: Reason, step: int) -> None:
        """The group has saved `step` and ends, as requested."""
        with self._lock:
            if not self._membership.stopped(generation, reason):
                return
            self._times.lost()
        self._log.flush()

    def superseded(self, by: str) -> None:
        """Another driver trains this run: nothing more is written, and the group ends at its next step."""
        with self._lock:
            self._log.mute()
            self._membership.supersede(
                TrainingError(
                    f"another `raylm train` of this run has begun, {by}, and goes on in place of this one",
                    hint="give one of the two another name",
                )
            )

    # -- how it ends ---------------------------------------------------------------------------------------------

    def fail(self, generation: Generation, error: RaylmError) -> None:
        """Report an error that no restart can mend; the first one counts."""
        with self._lock:
            if not self._membership.fail(generation, error):
                return
            self._record(Failed(message=error.message))
        self._log.flush()

    def group_ended(self, losses: Mapping[int, str]) -> bool:
        """A group ended; whether another attempt makes sense. losses: what happened to each rank, one line each."""
        with self._lock:
            members = self._membership
            end = members.ended()
            if not end.failure:
                return end.again
            self._times.lost()
            gone = culprits(losses, members.nodes)
            self._record(
                WorkerLost(
                    ranks=sorted(gone),
                    nodes=sorted({members.nodes.get(rank, "") for rank in gone} - {""}),
                    message="; ".join(sorted(set(gone.values())))[:500],
                    last_committed=members.committed,
                )
            )
        if end.exhausted:
            error = TrainingError(
                f"{members.failures_in_a_row} failures in a row without a finished step beyond step "
                f"{members.best_step}; the last: {'; '.join(sorted(set(losses.values())))[:1500]}",
                hint="mend the cause above, or raise workers.max_failures; the same command resumes",
            )
            self.fail(members.assignment.generation, error)
        return end.again

    def finish(self, generation: Generation, step: int, *, tokens: int, sequences: int) -> None:
        """The last step is trained and saved."""
        with self._lock:
            if not self._membership.finish(generation):
                return
            self._record(Finished(tokens=tokens, sequences=sequences), step=step)
        self._log.flush()

    def status(self) -> RunStatus:
        """Where the run stands."""
        return RunStatus(self._membership.last_step, self._membership.finished, self._membership.error)

    def feed(self, start: int) -> tuple[int, list[StepMetrics | Event]]:
        """Steps and events recorded since position `start`, and the new position."""
        return self._feed.since(start)

    def close(self) -> None:
        """Write out everything and let go."""
        self._log.close()

    def _request(self, reason: Reason, event: Event) -> bool:
        with self._lock:
            if self._membership.request(reason):
                self._record(event)
            return self._membership.listening

    def _record(self, event: Event, step: int | None = None) -> None:
        """Log an event, at the last step unless it says otherwise, of the newest group's size where it names none."""
        event = replace(
            event,
            step=self._membership.last_step if step is None else step,
            workers=self._membership.size if event.workers is None else event.workers,
        )
        self._feed.add(self._log.event(event))


class _Times:
    """When the parts of a start happened, and how long the run trained."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lost_at: float | None = None  # the end of the group before
        self._begun_at = self._registered_at = clock()
        self._stepped_at: float | None = None
        self.training_seconds = 0.0

    def begun(self) -> None:
        """An attempt began."""
        self._begun_at = self._registered_at = self._clock()
        self._stepped_at = None

    def registered(self) -> None:
        """Its rank 0 registered."""
        self._registered_at = self._clock()

    def started(self, phases: Mapping[str, float]) -> tuple[dict[str, float], float | None]:
        """The seconds of each part of the start, and their sum when another group had ended before."""
        lost_at, self._lost_at = self._lost_at, None
        parts = {"workers": self._registered_at - self._begun_at, **phases}
        if lost_at is None:
            return parts, None
        parts = {"decide": self._begun_at - lost_at, **parts}
        return parts, round(sum(parts.values()), 3)

    def stepped(self) -> None:
        """A step ended."""
        now = self._clock()
        self.training_seconds += now - self._stepped_at if self._stepped_at is not None else 0.0
        self._stepped_at = now

    def lost(self) -> None:
        """A group ended."""
        self._lost_at = self._clock()


def _counter() -> Callable[[], int]:
    numbers = iter(range(1, 1_000_000_000))
    return lambda: next(numbers)
