"""Which bodies reach each other: asked of them where a generation stands still, or breaks and nobody is lost.

The hub reaches all of them over their links, so that it alone sees which parts the network has fallen into. It goes on
with bodies that all reach each other, and has the others try again until they reach those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raylm.coordination.rounds import Rounds

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2 * CONNECT_SECONDS + 1.0  # who has not answered by then says nothing
# Who is left out tries again, later and later.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 60.0


def left_out(order: Sequence[int], parted: Iterable[tuple[int, int]]) -> set[int]:
    """Whom to leave out so that all others reach each other, given pairs that do not.

    Again and again whoever has most such pairs, of several the last in `order`.
    """
    pairs = {frozenset(pair) for pair in parted}
    place, out = {one: number for number, one in enumerate(order)}, set[int]()
    while pairs:
        counts = Counter(one for pair in pairs for one in pair)
        out.add(worst := max(counts, key=lambda one: (counts[one], place[one])))
        pairs = {pair for pair in pairs if worst not in pair}
    return out


@dataclass(frozen=True)
class Found:
    """What a check changed: bodies that are left out from now on, and those that are not any more."""

    out: frozenset[int]
    back: frozenset[int]


@dataclass
class _Check:
    number: int
    order: tuple[int, ...]
    until: float
    answers: dict[int, set[int]] = field(default_factory=dict)  # whom each has reached

    def parted(self) -> list[tuple[int, int]]:
        """Pairs that do not reach each other, of those that answered: of the others nobody knows whether they live."""
        answers = self.answers
        return [(one, other) for one in answers for other in answers if one != other and other not in answers[one]]


class Reach:
    """One check after another. send: a message to bodies. The caller holds the hub's lock."""

    def __init__(
        self,
        rounds: Rounds,
        send: Callable[[Iterable[int], Mapping[str, object]], None],
        clock: Callable[[], float],
    ) -> None:
        self._rounds, self._send, self._clock = rounds, send, clock
        self.apart: frozenset[int] = frozenset()
        self.checked_at = float("-inf")
        self._check: _Check | None = None
        self._number, self._pause, self._again_at = 0, FIRST_PAUSE_SECONDS, 0.0

    def turn(self, members: Sequence[int], known: Iterable[int], *, due: bool) -> Found | None:
        """What the check under way found once it has ended; else begin one, if it is due or somebody is left out.

        members: of the newest generation, by rank. known: all bodies that have not ended.
        """
        now, check = self._clock(), self._check
        if check is not None:
            if len(check.answers) < len(check.order) and now < check.until:
                return None
            self._check, self.checked_at = None, now
            silent = self.apart & set(check.order) - check.answers.keys()
            return self._changed(left_out(check.order, check.parted()) | silent, known)
        apart = self.apart & set(known)
        if due or (apart and now >= self._again_at):
            order = [*(body for body in members if body not in apart), *sorted(apart)]
            if len(order) < 2:
                self.checked_at = now
                return Found(frozenset(), frozenset())
            self._begin(order)
        return None

    def heard(self, body: int, number: int, reached: Iterable[int]) -> None:
        """A body says whom it has reached."""
        if self._check is not None and number == self._check.number:
            self._check.answers[body] = set(reached)

    def _begin(self, order: Sequence[int]) -> None:
        self._number += 1
        self._check = _Check(self._number, tuple(order), self._clock() + ANSWER_SECONDS)
        addresses = {body: self._rounds.address(body) for body in order}
        for body in order:
            peers = {str(other): address for other, address in addresses.items() if other != body}
            self._send([body], {"kind": "try", "number": self._number, "peers": peers})

    def _changed(self, out: set[int], known: Iterable[int]) -> Found:
        before, self.apart = self.apart & set(known), frozenset(out)
        self._rounds.apart(out)
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause) if out <= before else FIRST_PAUSE_SECONDS
        self._again_at = self._clock() + self._pause
        return Found(self.apart - before, before - self.apart)
