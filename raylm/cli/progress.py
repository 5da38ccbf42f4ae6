"""A run's steps and events as they happen: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from raylm.humanize import count, duration
from raylm.run.events import Event, WorkerLost
from raylm.run.metrics import StepMetrics


class Display(Protocol):
    """What shows a run."""

    def show(self, record: StepMetrics | Event) -> None:
        """Show a step or an event."""


class Pace:
    """How fast a run goes, smoothed, and so when it will end; knows of `total_steps` steps in all."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._seconds = 0.0
        self._counted = -1

    def take(self, metrics: StepMetrics) -> None:
        """Count one step in."""
        # The first step warms up: it counts only until the second. After that about the last twenty, so that a
        # resize shows soon.
        self._counted += 1
        self._seconds += (metrics.step_seconds - self._seconds) / min(20, max(1, self._counted))

    def left_seconds(self, step: int) -> float:
        """Seconds until the last step, if nothing changes."""
        return self._seconds * max(0, self.total_steps - step)


def step_words(metrics: StepMetrics, pace: Pace) -> str:
    """One step as a person reads it."""
    return f"step {metrics.step}/{pace.total_steps}  lr {metrics.lr:.2e}  {gauges(metrics, pace)}"


def gauges(metrics: StepMetrics, pace: Pace) -> str:
    """What a person watches: loss, speed, workers and the time left."""
    loss = metrics.loss
    return "  ".join(
        [
            f"loss {loss:.4f}" if math.isfinite(loss) else f"loss {loss}",
            f"{count(metrics.tokens_per_second)} tokens/s",
            f"{metrics.workers} worker{'s' if metrics.workers != 1 else ''}",
            f"{duration(pace.left_seconds(metrics.step))} left",
        ]
    )


def event_words(event: Event) -> str:
    """One event, with its time of day."""
    return f"{event.time[11:19]}  {event.describe()}"


class PlainLines:
    """Lines for a log file or a pipe: the first and last step, one every few seconds, and every event."""

    def __init__(
        self,
        total_steps: int,
        *,
        out: TextIO | None = None,
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pace, self._out, self._every, self._clock = Pace(total_steps), out or sys.stdout, every_seconds, clock
        self._shown_at: float | None = None

    def show(self, record: StepMetrics | Event) -> None:
        """Show a step or an event."""
        if isinstance(record, Event):
            print(event_words(record), file=self._out, flush=True)
            return
        self._pace.take(record)
        now = self._clock()
        due = self._shown_at is None or now - self._shown_at >= self._every
        if due or record.step == self._pace.total_steps:
            self._shown_at = now
            print(step_words(record, self._pace), file=self._out, flush=True)


class Bar:
    """A bar at the foot of the terminal, events scrolling above it."""

    def __init__(self, total_steps: int, *, started_at: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._pace = Pace(total_steps)
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}"),
            expand=True,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=started_at, words="starting workers")

    @contextmanager
    def shown(self) -> Iterator[Bar]:
        """The bar is on the screen inside this block."""
        with self._progress:
            yield self

    def show(self, record: StepMetrics | Event) -> None:
        """Show a step or an event."""
        if isinstance(record, StepMetrics):
            self._pace.take(record)
            self._progress.update(self._task, completed=record.step, words=gauges(record, self._pace))
            return
        self._progress.console.print(event_words(record), markup=False, highlight=False)
        if isinstance(record, WorkerLost):
            self._progress.update(self._task, words="waiting for workers")


@contextmanager
def watching(total_steps: int) -> Iterator[Display]:
    """The display that suits where output goes."""
    if sys.stdout.isatty():
        with Bar(total_steps).shown() as bar:
            yield bar
    else:
        yield PlainLines(total_steps)
