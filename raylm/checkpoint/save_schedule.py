"""When to save and what to keep, as arithmetic over numbers that are handed in.

Pure: nothing here reads a clock or storage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import sqrt

# Cost of a save that has not been measured yet: with failures an hour apart it gives a first save after 80 seconds.
FIRST_STALL_SECONDS = 1.0
# Below this, listing and committing cost more than the steps they protect.
SHORTEST_INTERVAL_SECONDS = 5.0


def young_daly(save_stall_seconds: float, mean_time_between_failures_seconds: float) -> float:
    """Seconds of training between saves that lose the least time to saving and to replaying.

    Daly's higher-order estimate (Future Generation Computer Systems 22, 2006, eq. 37). When a save costs more than
    twice the time between failures, the best that can be done is one save per failure.
    """
    cost, between = save_stall_seconds, mean_time_between_failures_seconds
    if cost >= 2 * between:
        return between
    ratio = cost / (2 * between)
    return sqrt(2 * cost * between) * (1 + sqrt(ratio) / 3 + ratio / 9) - cost


def mean_time_between_failures(*, first_guess_seconds: float, elapsed_seconds: float, failures: int) -> float:
    """The first guess counts as one failure in that time; what was seen since then outweighs it step by step."""
    return (first_guess_seconds + elapsed_seconds) / (1 + failures)


@dataclass(frozen=True)
class SaveSchedule:
    """When the next save is due. Each event gives a new SaveSchedule; times are readings of one monotonic clock.

    With neither every_steps nor every_seconds the interval follows from the measured stall and the failures seen.
    """

    started: float
    every_steps: int | None = None
    every_seconds: float | None = None
    first_guess_seconds: float = 3600.0
    failures: int = 0
    stall_seconds: float = FIRST_STALL_SECONDS
    upload_seconds: float = 0.0
    last_step: int = 0
    last_time: float | None = None

    def interval_seconds(self, now: float) -> float:
        """Seconds from one save to the next, when they are not counted in steps."""
        if self.every_seconds is not None:
            return self.every_seconds
        between = mean_time_between_failures(
            first_guess_seconds=self.first_guess_seconds, elapsed_seconds=now - self.started, failures=self.failures
        )
        # An upload still under way cannot be overtaken by the next one.
        return max(young_daly(self.stall_seconds, between), self.upload_seconds, SHORTEST_INTERVAL_SECONDS)

    def should_save(self, step: int, now: float) -> bool:
        """Is a save due after `step` finished steps? A step that was saved already is never due."""
        if step <= self.last_step:
            return False
        if self.every_steps is not None:
            return step % self.every_steps == 0
        since = self.started if self.last_time is None else self.last_time
        return now - since >= self.interval_seconds(now)

    def resumed(self, step: int, now: float) -> SaveSchedule:
        """Training goes on from the checkpoint of `step`."""
        return replace(self, last_step=step, last_time=now)

    def saving(self, step: int, now: float) -> SaveSchedule:
        """A save of `step` has begun."""
        return replace(self, last_step=step, last_time=now)

    def measured(self, stall_seconds: float, total_seconds: float) -> SaveSchedule:
        """A save has ended: it held training up for one time, and took the other in all."""
        return replace(self, stall_seconds=max(stall_seconds, 1e-3), upload_seconds=total_seconds)


@dataclass(frozen=True)
class Candidate:
    """A committed checkpoint as retention sees it; metric is better when lower, None when it was not measured."""

    step: int
    metric: float | None = None


def keep(checkpoints: Iterable[Candidate], *, newest: int, best: int = 0) -> frozenset[int]:
    """Steps to keep: the newest k (at least one), and the best k by metric; of equal ones the later."""
    found = sorted(checkpoints, key=lambda one: one.step, reverse=True)
    kept = {one.step for one in found[: max(newest, 1)]}
    # A metric that is not a number compares with nothing: it is no best.
    measured = [(one.metric, -one.step) for one in found if one.metric is not None and one.metric == one.metric]
    kept.update(-negative for _, negative in sorted(measured)[:best])
    return frozenset(kept)
