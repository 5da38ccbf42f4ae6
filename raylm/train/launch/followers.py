"""A run's records as they come, for as many followers as like to read them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from raylm.coordination.feed import Feed
from raylm.run.events import Event
from raylm.run.metrics import StepMetrics


class Followers:
    """Records of a run, and who waits for the next one."""

    def __init__(self) -> None:
        self._feed = Feed()
        self._changed = threading.Condition()
        self._ended = False

    def add(self, records: Sequence[StepMetrics | Event]) -> None:
        """Hand records to every follower."""
        with self._changed:
            for record in records:
                self._feed.add(record)
            self._changed.notify_all()

    def end(self) -> None:
        """No more records come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, timeout: float | None) -> bool:
        """Wait until the end; whether it came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout)

    def follow(self) -> Iterator[StepMetrics | Event]:
        """Every record from the first that is still held, until the end."""
        return _Follower(self)

    def since(self, start: int) -> tuple[int, list[StepMetrics | Event], bool]:
        """Wait for records from position `start` on, or the end; also the new position and whether the end came."""
        with self._changed:
            # In short turns: a wait without a timeout may hold Ctrl-C back.
            while True:
                position, found = self._feed.since(start)
                if found or self._ended:
                    return position, found, self._ended
                self._changed.wait(1.0)


class _Follower(Iterator[StepMetrics | Event]):
    """Not a generator: one that Ctrl-C interrupts goes on with the next record."""

    def __init__(self, followers: Followers) -> None:
        self._followers = followers
        self._position = 0
        self._next: list[StepMetrics | Event] = []

    def __next__(self) -> StepMetrics | Event:
        if not self._next:
            self._position, found, _ = self._followers.since(self._position)
            self._next = found[::-1]
        if not self._next:
            raise StopIteration
        return self._next.pop()
