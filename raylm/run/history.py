"""A run's history: the steps and events of its folder, and where its time went."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from raylm.errors import ConfigError, DataError
from raylm.run.events import CheckpointCommitted, Evaluated, Event, GroupStarted, PreemptionNotice, Resized, WorkerLost
from raylm.run.folder import RunFolder
from raylm.run.log import read_events, read_metrics
from raylm.run.metrics import StepMetrics

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class History:
    """The steps and events of a run, in order of time."""

    name: str
    steps: tuple[StepMetrics, ...]
    events: tuple[Event, ...]
    steps_planned: int | None = None

    @property
    def held_out(self) -> list[Evaluated]:
        """Each held-out loss; a replayed evaluation counts once, the last time."""
        found = {event.step: event for event in self.of(Evaluated)}
        return [found[step] for step in sorted(found)]

    @property
    def starts(self) -> list[GroupStarted]:
        """How each worker group began: with nothing saved, or from a checkpoint."""
        return self.of(GroupStarted)

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


@dataclass(frozen=True)
class Totals:
    """Where a run's time went, in seconds, and what it trained.

    useful: steps that count. replayed: work that a loss threw away. idle: waiting for workers, starting, restoring,
    evaluating and saving. stopped: nothing was running. The four add up to the span from first to last line.
    """

    useful_seconds: float
    replayed_seconds: float
    idle_seconds: float
    stopped_seconds: float
    tokens: int
    steps: int
    steps_lost: int
    workers_lost: int
    resizes: int
    notices: int
    checkpoints: int

    @property
    def span_seconds(self) -> float:
        """From the first line to the last."""
        return self.useful_seconds + self.replayed_seconds + self.idle_seconds + self.stopped_seconds


def read_history(run: RunFolder) -> History:
    """Read a run folder's metrics and events."""
    metrics, events = read_metrics(run), read_events(run)
    if not metrics and not events:
        raise DataError(
            f"nothing to report: {run.url} has neither metrics nor events",
            hint="give the run folder, <storage>/<name> of the job file, after `raylm train` has begun",
        )
    return History(
        name=run.name,
        steps=tuple(step for step in metrics if math.isfinite(step.at)),
        events=tuple(sorted((event for event in events if math.isfinite(event.at)), key=lambda event: event.at)),
        steps_planned=_planned(run),
    )


def totals(history: History) -> Totals:
    """Divide the run's span into useful, replayed, idle and stopped time."""
    moments = [step.at for step in history.steps] + [event.at for event in history.events]
    # The first line is written when the first step or start is over; what led to it belongs to the span.
    starts = [event.at - (event.seconds or 0.0) for event in history.starts]
    starts += [step.at - step.step_seconds for step in history.steps[:1]]
    span = max(moments) - min(moments + starts)
    useful = sum(step.step_seconds for step in history.steps)
    stopped = sum(end - begin for begin, end in stops(history))
    replayed = sum(end - begin for begin, end in thrown_away(history))
    replayed = min(replayed, max(0.0, span - useful - stopped))
    return Totals(
        useful_seconds=useful,
        replayed_seconds=replayed,
        idle_seconds=max(0.0, span - useful - replayed - stopped),
        stopped_seconds=stopped,
        tokens=sum(step.tokens for step in history.steps),
        steps=len(history.steps),
        steps_lost=sum(event.steps_lost or 0 for event in history.starts),
        workers_lost=sum(max(1, len(event.ranks)) for event in history.of(WorkerLost)),
        resizes=len(history.of(Resized)),
        notices=len(history.of(PreemptionNotice)),
        checkpoints=len({event.step for event in history.of(CheckpointCommitted)}),
    )


def stops(history: History) -> list[tuple[float, float]]:
    """Spans of time, first to last, in which no driver was running: before each first start of a driver."""
    found = []
    for start in history.starts:
        began = start.at - (start.seconds or 0.0)
        before = [event.at for event in history.events if event.at < began]
        before += [step.at for step in history.steps if step.at < began]
        if before and start.since_loss_seconds is None:
            found.append((max(before), began))
    return found


def thrown_away(history: History) -> list[tuple[float, float]]:
    """Spans of time whose steps were lost and trained again.

    The lost lines were replaced by their replay, so a span runs from the last step that still stands, or the start
    before it, to the moment the loss was seen; where nobody saw it, it is as long as so many steps usually take.
    """
    found = []
    pace = sorted(step.step_seconds for step in history.steps)
    for start in history.starts:
        lost = start.steps_lost or 0
        stands = [step.at for step in history.steps if step.step <= start.step and step.at < start.at]
        stands += [event.at for event in history.starts if event.at < start.at]
        if not lost or not stands:
            continue
        seen = [event.at for event in history.of(WorkerLost) if max(stands) < event.at < start.at]
        usual = lost * pace[len(pace) // 2] if pace else 0.0
        found.append((max(stands), min(seen[-1] if seen else max(stands) + usual, start.at)))
    return found


def _planned(run: RunFolder) -> int | None:
    """How many steps the run was to have, as its settings say; None when that is not known."""
    try:
        job = run.read_job()
        return None if job is None else job.train.steps
    except ConfigError:
        return None  # written by another version of raylm; the history is readable all the same
