"""How each generation of a run began, as its log tells it: why, since when, and what the time went to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from raylm.run.events import Event, GroupStarted, Waiting
from raylm.run.history import History

# The parts of a start in their order; what other versions name comes after them.
PHASES = ("waiting", "gather", "import", "form", "build", "state", "copy")


@dataclass(frozen=True)
class Regroup:
    """One start of a generation.

    began: when the first member had left the generation before, or the driver began. phases: seconds by part, in order
    of time. before: the events since the start before. workers_before: None where nothing ran before.
    """

    start: GroupStarted
    began: float
    phases: Mapping[str, float] = field(default_factory=dict)
    before: tuple[Event, ...] = ()
    workers_before: int | None = None

    @property
    def of_a_driver(self) -> bool:
        """Whether it was its driver's first: nothing ran before it."""
        return self.start.since_loss_seconds is None

    @property
    def seconds(self) -> float:
        """Of all its phases; of the whole start where the log names none."""
        return math.fsum(self.phases.values()) or seconds_of(self.start.seconds)

    def spans(self) -> Iterator[tuple[str, float, float]]:
        """Each phase with its begin and end: the last one ends with the start, none begins before all of it did."""
        end = self.start.at
        for name, seconds in reversed(list(self.phases.items())):
            begin = max(self.began, end - seconds)
            yield name, begin, end
            end = begin


def regroups(history: History) -> list[Regroup]:
    """Every start, in order of time; one ends before the next begins, whatever the log says."""
    found: list[Regroup] = []
    before: list[Event] = []
    for event in history.events:
        if isinstance(event, GroupStarted):
            found.append(_regroup(event, tuple(before), found[-1].start if found else None))
            before = []
        else:
            before.append(event)
    return found


def seconds_of(value: object) -> float:
    """A number of seconds from a log; what is none counts nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return max(0.0, float(value))


def in_order(names: set[str]) -> list[str]:
    """Phases in the order in which they follow each other, unknown ones last."""
    return [name for name in PHASES if name in names] + sorted(names - set(PHASES))


def _regroup(start: GroupStarted, before: tuple[Event, ...], last: GroupStarted | None) -> Regroup:
    phases = _phases(start)
    took = max(math.fsum(phases.values()), seconds_of(start.seconds), seconds_of(start.since_loss_seconds))
    began = start.at - took if last is None else max(last.at, start.at - took)
    if "gather" in phases and any(isinstance(event, Waiting) and event.at >= began for event in before):
        phases = {"waiting" if name == "gather" else name: seconds for name, seconds in phases.items()}
    workers = None if last is None or start.since_loss_seconds is None else last.workers
    return Regroup(start, began, phases, before, workers)


def _phases(start: GroupStarted) -> dict[str, float]:
    told = start.phases if isinstance(start.phases, Mapping) else {}
    return {str(name): seconds_of(seconds) for name, seconds in told.items()}
