"""Ranks that are slower than the others: each rank's own seconds a step, and who is slow for long enough to be told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raylm.run.events import Straggler

# Of a wait before a straggler is told, one measurement takes this part, and at most so many seconds.
WINDOW_SHARE, WINDOW_SECONDS = 0.2, 10.0
WINDOW_STEPS = 5


class RankTimes:
    """What a step would take each rank by itself, as means over some seconds. size: how many ranks there are."""

    def __init__(self, size: int, patience_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window, self._clock = min(WINDOW_SECONDS, WINDOW_SHARE * patience_seconds), clock
        self._size, self._since, self._steps, self._stepping = size, clock(), 0, 0.0
        self._waiting, self._computing = [0.0] * size, [0.0] * size

    def add(self, waiting: Sequence[float], computing: Sequence[float], step_seconds: float) -> None:
        """A step, with the seconds that each rank waited for its data, and those its device computed of a sample."""
        self._waiting = [one + more for one, more in zip(self._waiting, waiting, strict=True)]
        self._computing = [one + more for one, more in zip(self._computing, computing, strict=True)]
        self._stepping += step_seconds
        self._steps += 1

    def newest(self) -> tuple[float, ...] | None:
        """Each rank's seconds a step, once in a while; None between, and where nothing was measured.

        The slowest rank's data and computing make up the whole step; another one's computing is in proportion to it.
        """
        if self._size < 2 or self._steps < WINDOW_STEPS or self._clock() - self._since < self._window:
            return None
        waiting, computing, steps = self._waiting, self._computing, self._steps
        computed = max(0.0, self._stepping - max(waiting))
        self._begin()
        if min(computing) <= 0:
            return None
        most = max(computing)
        found = (waits + computed * own / most for waits, own in zip(waiting, computing, strict=True))
        return tuple(round(seconds / steps, 4) for seconds in found)

    def _begin(self) -> None:
        self._since, self._steps, self._stepping = self._clock(), 0, 0.0
        self._waiting, self._computing = [0.0] * self._size, [0.0] * self._size


@dataclass(frozen=True)
class Slow:
    """A body that has been slower than the others for so many seconds; others_seconds: the median of theirs a step."""

    body: int
    step_seconds: float
    others_seconds: float
    seconds: float

    def event(self, rank: int, node: str, *, replaced: bool) -> Straggler:
        """It as the record has it; node: the machine's name."""
        times = (self.step_seconds, round(self.others_seconds, 4), round(self.seconds, 1))
        return Straggler(
            rank=rank, node=node, step_seconds=times[0], others_seconds=times[1], seconds=times[2], replaced=replaced
        )


class Stragglers:
    """Who has been slower than the median of the others by `ratio`, without a break, for `patience_seconds`."""

    def __init__(self, ratio: float, patience_seconds: float, clock: Callable[[], float]) -> None:
        self._ratio, self._patience, self._clock = ratio, patience_seconds, clock
        self._since: dict[int, float] = {}
        self._told: set[int] = set()

    def heard(self, times: Mapping[int, float]) -> Iterator[Slow]:
        """The seconds a step of each body of the generation: those who are to be told now, each told once."""
        now = self._clock()
        slow = dict[int, float]()
        for body, seconds in times.items():
            others = statistics.median([other for one, other in times.items() if one != body] or [seconds])
            if seconds > self._ratio * others:
                slow[body] = others
        self._since = {body: self._since.get(body, now) for body in slow}
        self._told &= set(slow)
        for body, others in slow.items():
            lasting = now - self._since[body]
            if lasting >= self._patience and body not in self._told:
                self._told.add(body)
                yield Slow(body, times[body], others, lasting)
