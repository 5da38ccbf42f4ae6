"""A run's history: the steps and events of its folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from raylm.config.job import Job
from raylm.errors import ConfigError, DataError
from raylm.run.events import Evaluated, Event, GroupStarted
from raylm.run.folder import RunFolder
from raylm.run.log import read_events, read_metrics
from raylm.run.metrics import StepMetrics

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class History:
    """The steps and events of a run, in order of time, and its settings where they can be read."""

    name: str
    steps: tuple[StepMetrics, ...]
    events: tuple[Event, ...]
    job: Job | None = None

    @property
    def steps_planned(self) -> int | None:
        """How many steps the run was to have, None when its settings are not known."""
        return None if self.job is None else self.job.train.steps

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
        job=_settings(run),
    )


def _settings(run: RunFolder) -> Job | None:
    """The run's settings, None when they are not known."""
    try:
        return run.read_job()
    except ConfigError:
        return None  # written by another version of raylm; the history is readable all the same
