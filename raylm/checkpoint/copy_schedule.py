"""Copies in the memory of other nodes as arithmetic: who keeps whose shard, how often, and what that takes.

Pure: nothing here reads a clock or holds a tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

# Of the time of the steps between two copies, what copying may take.
COPY_SHARE = 0.02
# Where steps are shorter than this, a copy that costs no more than CHEAP_SECONDS is made after every one.
SHORT_STEP_SECONDS = 0.5
CHEAP_SECONDS = 0.025
# A master weight and two moments in fp32, at any dtype of the model.
STATE_BYTES = 12
# The newest whole copy, and the one that is being made.
SLOTS = 2
# Weight of the newest measurement: a copy is short, and other work on the machine may lengthen one tenfold.
NEWEST_SHARE = 0.25


def neighbour_shift(nodes: Sequence[str]) -> int:
    """The distance from a rank to the rank that keeps its shard, given the node of each rank; 0 for one rank.

    The smallest at which every rank's keeper is on another node, else the one at which most are (1 if none can be).
    """
    size = len(nodes)
    if size < 2:
        return 0
    best, most = 1, 0
    reachable = min(size, 2 * (size - max(Counter(nodes).values())))
    for shift in range(1, size // 2 + 1):  # a shift and its complement part the same pairs of ranks
        apart = sum(nodes[rank] != nodes[(rank + shift) % size] for rank in range(size))
        if apart > most:
            best, most = shift, apart
        if most == reachable:
            break
    return best


def copy_bytes(parameters: int, workers: int, *, frozen_bytes: int = 0) -> int:
    """Host memory that the copies take on each worker: so many trained parameters, and the bytes of what is frozen."""
    shards = min(workers, 2)
    return shards * (SLOTS * STATE_BYTES * -(-parameters // workers) + -(-frozen_bytes // workers))


@dataclass(frozen=True)
class CopySchedule:
    """After which steps copies are made. Each event gives a new CopySchedule.

    every_steps: fixed, 0 for never; None lets the cost decide. All ranks have to give the same numbers to `measured`,
    so that all decide alike.
    """

    every_steps: int | None = None
    copy_seconds: float | None = None
    step_seconds: float = 0.0
    last_step: int = 0

    @property
    def interval(self) -> int:
        """Steps from one copy to the next; 0 for never."""
        if self.every_steps is not None:
            return self.every_steps
        if self.copy_seconds is None or self.step_seconds <= 0:
            return 1
        if self.step_seconds < SHORT_STEP_SECONDS and self.copy_seconds <= CHEAP_SECONDS:
            return 1
        return max(1, ceil(self.copy_seconds / (COPY_SHARE * self.step_seconds)))

    def due(self, step: int) -> bool:
        """Is a copy due after `step` finished steps?"""
        return 0 < self.interval <= step - self.last_step

    def copied(self, step: int) -> CopySchedule:
        """A copy of `step` has begun, or training goes on from the state of `step`."""
        return replace(self, last_step=step)

    def measured(self, copy_seconds: float, step_seconds: float) -> CopySchedule:
        """A copy held training up for so long, and steps took so long; averaged with what was measured before."""
        if self.copy_seconds is None:
            return replace(self, copy_seconds=copy_seconds, step_seconds=step_seconds)
        return replace(
            self,
            copy_seconds=self.copy_seconds + NEWEST_SHARE * (copy_seconds - self.copy_seconds),
            step_seconds=self.step_seconds + NEWEST_SHARE * (step_seconds - self.step_seconds),
        )
