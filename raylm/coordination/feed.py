"""The newest records of a run, for those who follow it while it goes on."""

from __future__ import annotations

import threading
from collections import deque

from raylm.run.events import Event
from raylm.run.metrics import StepMetrics

# What a follower that asks too seldom can still read.
FEED_RECORDS = 4096


class Feed:
    """Steps and events by position, the newest FEED_RECORDS of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: deque[StepMetrics | Event] = deque(maxlen=FEED_RECORDS)
        self._end = 0

    def add(self, record: StepMetrics | Event) -> None:
        """Append a record."""
        with self._lock:
            self._records.append(record)
            self._end += 1

    def since(self, start: int) -> tuple[int, list[StepMetrics | Event]]:
        """The records from position `start` on, as far as they are still held, and the new position."""
        with self._lock:
            held = min(self._end - start, len(self._records))
            return self._end, list(self._records)[len(self._records) - held :]
