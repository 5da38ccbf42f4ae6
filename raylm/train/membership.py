"""Who is in a run's group, why it should end, and whether another one may follow: decisions alone.

A state machine without I/O, threads or a clock. An *attempt* is a set of workers that Ray Train started, a
*generation* a process group, a *fence* the right to commit to storage. Today each attempt forms one group and claims
one fence, so all three have one number; `begin` is where that is so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raylm.errors import RaylmError
from raylm.train.coordination import Assignment, Attempt, Fence, Generation, Reason


@dataclass(frozen=True)
class GroupEnd:
    """What the end of a group means. failure: it was not requested; exhausted: it was one failure too many."""

    again: bool
    failure: bool = False
    exhausted: bool = False


def culprits(losses: Mapping[int, str], ranks: Collection[int]) -> dict[int, str]:
    """The ranks that ended a group, each with why, of what is known when it ended.

    losses: rank → `lost: …` for one that died, `error: …` for one that raised. A rank that raised GroupBroken lost a
    peer, and ends no group by itself: where there is nothing but such, it was those that have not been heard of.
    """
    lost = {rank: why for rank, why in losses.items() if why.startswith("lost")}
    raised = {rank: why for rank, why in losses.items() if not why.startswith("error: GroupBroken")}
    silent = {rank: "lost: it did not say why" for rank in ranks if rank not in losses}
    return lost or raised or silent or dict(losses)


class Membership:
    """The members of the newest generation, what is asked of them, and how the run goes on when they end."""

    def __init__(self, *, max_failures: int, best_step: int = 0) -> None:
        self.assignment = numbered(0)
        self.size = 0
        self.nodes: dict[int, str] = {}  # rank → node, kept until the next attempt begins
        self.requested: Reason | None = None
        self.listening = False  # whether a group is there that will hear a request
        self.error: RaylmError | None = None
        self.finished = False
        self.last_step = self.best_step = best_step
        self.committed = 0
        self.failures = self.failures_in_a_row = 0
        self._max_failures = max_failures
        self._address: str | None = None
        self._stopped: Reason | None = None

    def begin(self, number: int, size: int) -> Assignment:
        """An attempt of `size` workers begins under a number that is higher than every one before."""
        self.assignment, self.size = numbered(number), size
        self.nodes, self._address = {}, None
        self.requested = Reason.STOP if self.requested is Reason.STOP else None  # no group may have heard it yet
        self._stopped = None
        self.listening = False
        return self.assignment

    def is_current(self, generation: Generation) -> bool:
        """Whether this is the newest generation: others are not heard."""
        return generation == self.assignment.generation

    def register(self, generation: Generation, rank: int, node: str, address: str | None) -> bool:
        """Rank `rank` runs on `node`; rank 0 gives the address at which the group meets. False when it is not heard."""
        if not self.is_current(generation):
            return False
        self.nodes[rank] = node
        self.listening = True
        self._address = address if address is not None else self._address
        return True

    def address(self, generation: Generation) -> str | None:
        """Where a generation meets, once its rank 0 has registered."""
        return self._address if self.is_current(generation) else None

    def ranks_on(self, nodes: Mapping[str, object]) -> list[int]:
        """The members that run on one of these nodes."""
        return sorted(rank for rank, node in self.nodes.items() if node in nodes)

    def request(self, reason: Reason) -> bool:
        """Ask the group to save and end; False when that changes nothing.

        STOP comes before every other reason and waits for a group to hear it. Of the others the first one stands, and
        only while a group listens.
        """
        first = self.requested is None and self.listening
        new = self.requested is not Reason.STOP if reason is Reason.STOP else first
        if not new or self.finished:
            return False
        self.requested = reason
        return True

    def stop_requested(self, generation: Generation) -> Reason | None:
        """Why a generation should end: what was requested, or STALE when the run goes on, or ends, without it."""
        return Reason.STALE if not self.is_current(generation) or self.error is not None else self.requested

    def started(self, generation: Generation, step: int) -> int | None:
        """The group holds the state of `step`; how many finished steps it trains again, None when it is not heard."""
        if not self.is_current(generation):
            return None
        again = max(0, self.last_step - step)
        self.last_step = step
        self.committed = max(self.committed, step)
        return again

    def stepped(self, generation: Generation, step: int) -> bool:
        """The group finished `step`: beyond every step before, it ends a row of failures. False when not heard."""
        if not self.is_current(generation):
            return False
        self.last_step = step
        if step > self.best_step:
            self.best_step = step
            self.failures_in_a_row = 0
        return True

    def stopped(self, generation: Generation, reason: Reason) -> bool:
        """The group saved its step and ends for `reason`; False when it is not heard."""
        if self.is_current(generation):
            self._stopped = reason
        return self.is_current(generation)

    def fail(self, generation: Generation, error: RaylmError) -> bool:
        """No restart can mend this; False when it is not heard, or is not the first such error."""
        if not self.is_current(generation) or self.error is not None:
            return False
        self.error = error
        return True

    def supersede(self, error: RaylmError) -> None:
        """The run is another driver's now."""
        if not self.finished:
            self.error = error

    def finish(self, generation: Generation) -> bool:
        """The last step is trained and saved; False when it is not heard."""
        self.finished = self.finished or self.is_current(generation)
        return self.is_current(generation)

    def ended(self) -> GroupEnd:
        """The newest group is no more; what that means."""
        self.listening = False
        if self.error is not None or self._stopped is Reason.STOP:
            return GroupEnd(again=False)
        if self._stopped is not None:
            return GroupEnd(again=True)
        self.failures += 1
        self.failures_in_a_row += 1
        exhausted = self.failures_in_a_row > self._max_failures
        return GroupEnd(again=not exhausted, failure=True, exhausted=exhausted)


def numbered(number: int) -> Assignment:
    """The assignment of the attempt that claimed this number."""
    return Assignment(Attempt(number), Generation(number), Fence(number))
