"""What is to be written to a run's log, noted at once and written by whoever may wait for storage."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from raylm.run.metrics import Record, utc_now

R = TypeVar("R", bound=Record)


def stamped(record: R) -> R:
    """A record with the time at which it happened."""
    return replace(record, time=record.time or utc_now())


class Notes:
    """Writes to come, in order. One that fails stays, with those after it, for the next try."""

    def __init__(self) -> None:
        self._writes: deque[Callable[[], object]] = deque()
        self._writing = threading.Lock()

    def add(self, write: Callable[[], object]) -> None:
        """Note a write; returns at once."""
        self._writes.append(write)

    def write(self) -> None:
        """Carry out all that was noted before."""
        with self._writing:
            while self._writes:
                self._writes[0]()
                self._writes.popleft()
