"""Comes in: a run's metrics and events as they happen. Leaves: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from raylm.humanize import count, duration
from raylm.run.history import describe

Line = Mapping[str, Any]


class Display(Protocol):
    """What watches a run."""

    def on_step(self, line: Line) -> None:
        """Take one metrics line."""

    def on_event(self, line: Line) -> None:
        """Take one event line."""


class Pace:
    """How fast a run goes, smoothed, and so when it will end; knows of `total_steps` steps in all."""

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._seconds = 0.0
        self._counted = -1

    def take(self, line: Line) -> None:
        """Count one step in."""
        took = float(line["step_seconds"])
        # The first step warms up: it counts only until the second. After that about the last twenty, so that a
        # resize shows soon.
        self._counted += 1
        self._seconds += (took - self._seconds) / min(20, max(1, self._counted))

    def left_seconds(self, step: int) -> float:
        """Seconds until the last step, if nothing changes."""
        return self._seconds * max(0, self.total_steps - step)


def step_words(line: Line, pace: Pace) -> str:
    """One metrics line as a person reads it."""
    return f"step {line['step']}/{pace.total_steps}  lr {float(line['lr']):.2e}  {gauges(line, pace)}"


def gauges(line: Line, pace: Pace) -> str:
    """What a person watches: loss, speed, workers and the time left."""
    loss = float(line["loss"])
    return "  ".join(
        [
            f"loss {loss:.4f}" if math.isfinite(loss) else f"loss {loss}",
            f"{count(float(line['tokens_per_second']))} tokens/s",
            f"{line['workers']} worker{'s' if line['workers'] != 1 else ''}",
            f"{duration(pace.left_seconds(line['step']))} left",
        ]
    )


def event_words(line: Line) -> str:
    """One event line, with its time of day."""
    clock = str(line.get("time", ""))[11:19]
    return f"{clock}  {describe(str(line.get('event')), line)}"


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
        self._told_at: float | None = None

    def on_step(self, line: Line) -> None:
        """Take one metrics line."""
        self._pace.take(line)
        now = self._clock()
        due = self._told_at is None or now - self._told_at >= self._every
        if due or line["step"] == self._pace.total_steps:
            self._told_at = now
            print(step_words(line, self._pace), file=self._out, flush=True)

    def on_event(self, line: Line) -> None:
        """Take one event line."""
        print(event_words(line), file=self._out, flush=True)


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

    def on_step(self, line: Line) -> None:
        """Take one metrics line."""
        self._pace.take(line)
        self._progress.update(self._task, completed=line["step"], words=gauges(line, self._pace))

    def on_event(self, line: Line) -> None:
        """Take one event line."""
        self._progress.console.print(event_words(line), markup=False, highlight=False)
        if line.get("event") == "worker_lost":
            self._progress.update(self._task, words="waiting for workers")


@contextmanager
def watching(total_steps: int) -> Iterator[Display]:
    """The display that suits where output goes."""
    if sys.stdout.isatty():
        with Bar(total_steps).shown() as bar:
            yield bar
    else:
        yield PlainLines(total_steps)
