"""The bodies of a run as its hub knows them: asked for, heard of, about to leave, let go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raylm.coordination.reach import Found
from raylm.coordination.rounds import Rounds
from raylm.runtime.link import Switchboard
from raylm.runtime.shares import Share

PLACING_SECONDS = 15.0  # from the request for a body to its hello, when there is room for it
REPLACE_SECONDS = 30.0  # a body that is replaced waits so long for the other
LEAVE_SECONDS = 10.0  # bodies that were let go are ended after that
# Where bodies end before they have enlisted, the next one is asked for later and later.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0


class Cluster(Protocol):
    """Where bodies come from."""

    def ask(self, body: int, address: str, token: str, *, avoid: Collection[str]) -> None:
        """Ask for a body, which comes into being when there is room on a node that is not one of `avoid`."""

    def ended(self) -> Sequence[tuple[int, str, bool]]:
        """Bodies that ended since the last call: why, and whether by an error of the program's own."""

    def placed(self) -> Sequence[int]:
        """Bodies that have found a place since the last call; they say hello later."""

    def end(self, body: int) -> None:
        """End a body, or no longer ask for it."""

    def draining(self) -> Mapping[str, float | None]:
        """Nodes about to be reclaimed, with the seconds left where that is known."""

    def share(self, nodes: Sequence[str], *, waiting: bool) -> Share | None:
        """What the run may have of the cluster, of which it holds a worker's place on each of `nodes`."""

    def room(self) -> int:
        """Bodies that would come into being at once."""

    def per_worker(self) -> Mapping[str, float]:
        """What each body reserves."""


@dataclass(frozen=True)
class Seen:
    """What the cluster shows. room: bodies that would come into being at once, None where that does not matter."""

    ended: Sequence[tuple[int, str, bool]]
    placed: Sequence[int]
    draining: Mapping[str, float | None]
    room: int | None


def look(cluster: Cluster, *, for_room: bool) -> Seen:
    """Look at the cluster once."""
    return Seen(cluster.ended(), cluster.placed(), cluster.draining(), cluster.room() if for_room else None)


@dataclass
class Known:
    """What the hub knows of a body besides its part in rounds. asked: it has not said hello yet.

    placed: it has a place, where its process starts. ready: it has enlisted for a round. leave_at: when it is to leave.
    """

    asked_at: float
    asked: bool = True
    placed: bool = False
    ready: bool = False
    node: str = ""
    name: str = ""  # of its machine, for people
    leave_at: float | None = None
    gone_at: float | None = None  # when its node will be reclaimed
    due: bool = False  # it is to leave now
    replaced: bool = False  # as it is slow
    apart: bool = False  # it does not reach the others
    let_go: bool = False
    end_by: float | None = None

    @property
    def leaving(self) -> bool:
        """Whether its node is about to be reclaimed."""
        return self.leave_at is not None

    @property
    def stays(self) -> bool:
        """Whether it is counted on, or will be once it has come."""
        return not self.let_go and not self.leaving and not self.apart

    def leave_by(self, time: float) -> bool:
        """Whether it is to leave by then."""
        return self.leave_at is not None and self.leave_at <= time


class Bodies:
    """Every body that was asked for and has not ended. The caller holds the hub's lock."""

    def __init__(self, cluster: Cluster, rounds: Rounds, clock: Callable[[], float]) -> None:
        self.known: dict[int, Known] = {}
        self._cluster, self._rounds, self._clock = cluster, rounds, clock
        self._last = 0
        self._avoid: set[str] = set()  # nodes of stragglers
        self._stillborn = 0  # in a row
        self._ask_after = float("-inf")
        self._switchboard: Switchboard | None = None
        self._token = ""

    def serve(self, switchboard: Switchboard, token: str) -> None:
        """What bodies connect to, and with which token."""
        self._switchboard, self._token = switchboard, token

    def ask_for(self, wanted: int) -> None:
        """Have so many stay; what does not fit comes into being when it does."""
        assert self._switchboard is not None
        staying = [body for body, known in self.known.items() if known.stays]
        for _ in range(wanted - len(staying) if self._clock() >= self._ask_after else 0):
            self._last += 1
            self.known[self._last] = Known(asked_at=self._clock())
            self._cluster.ask(self._last, self._switchboard.address, self._token, avoid=self._avoid)
        # One that has just found a place looks as if another run had taken it, until that is known.
        pending = [body for body in staying if self.known[body].asked and not self.known[body].placed]
        pending = [body for body in pending if self._clock() - self.known[body].asked_at > PLACING_SECONDS]
        for body in pending[: max(0, len(staying) - wanted)]:
            self.forget(body)

    def placed(self, bodies: Iterable[int]) -> None:
        """These have found a place."""
        for body in bodies:
            if body in self.known:
                self.known[body].placed = True

    def staying(self) -> int:
        """How many have a place and are not to leave it."""
        return sum(one.placed or not one.asked for one in self.known.values() if one.stays)

    def here(self) -> list[Known]:
        """Those that have come into being and were not let go."""
        return [known for known in self.known.values() if not known.asked and not known.let_go]

    def overrun(self, boundary: float) -> bool:
        """Whether the time of one that is to leave is up before then."""
        return any(known.due and known.gone_at is not None and known.gone_at < boundary for known in self.here())

    def names(self, bodies: Iterable[int]) -> list[str]:
        """The machines of these, for people."""
        return sorted({self.known[body].name for body in bodies if body in self.known})

    def set_apart(self, found: Found, *, full: bool) -> None:
        """Do not count on those that are left out; who is not any more ends where others have taken all places."""
        for body in (found.out | found.back) & self.known.keys():
            self.known[body].apart = body in found.out
            if full and body in found.back:
                self.let_go(body, orderly=False)

    def among(self, members: Iterable[int]) -> list[Known]:
        """Those of a generation's members that have not ended."""
        return [self.known[body] for body in members if body in self.known]

    def notice(self, draining: Mapping[str, float | None], margin: float) -> dict[int, float | None]:
        """Bodies on nodes about to be reclaimed, each told once, with the seconds left where that is known.

        They are replaced at once, and are to leave `margin` seconds before their time is up.
        """
        now, noticed = self._clock(), dict[int, float | None]()
        for body, known in self.known.items():
            if known.node in draining and not known.leaving:
                left = noticed[body] = draining[known.node]
                known.leave_at = now if left is None else max(now, now + left - margin)
                known.gone_at = None if left is None else now + left
        return noticed

    def replace(self, body: int) -> None:
        """A body leaves as soon as another one joins, or after a while, and its node is not used again."""
        known = self.known[body]
        known.leave_at, known.replaced = self._clock() + REPLACE_SECONDS, True
        self._avoid.add(known.node)

    def let_leave(self, until: float) -> None:
        """Have bodies leave whose time to leave has come by then."""
        due = [body for body, known in self.known.items() if not known.due and known.leave_by(until)]
        for body in due:
            self.known[body].due = True
        if due:
            self._rounds.leaving(due)

    def let_go(self, body: int, *, orderly: bool) -> None:
        """Tell a body to end. orderly: what it is about to finish, it may."""
        known = self.known.get(body)
        if known is not None and not known.let_go:
            known.let_go, known.end_by = True, self._clock() + LEAVE_SECONDS
            self.send([body], {"kind": "leave", "orderly": orderly})

    def end_the_leaving(self) -> None:
        """Let those go that are to leave, with the state that they hold."""
        for body, known in self.known.items():
            if known.due and not known.let_go:
                self._rounds.gone(body)
                self.let_go(body, orderly=True)

    def let_all_go(self, *, orderly: bool) -> None:
        """The run is over: bodies end, and those that have not come into being never do."""
        for body, known in list(self.known.items()):
            if known.asked:
                self.forget(body)
            else:
                self.let_go(body, orderly=orderly)

    def end_the_late(self) -> None:
        """End bodies that were let go and did not end by themselves."""
        for body, known in list(self.known.items()):
            if known.end_by is not None and self._clock() > known.end_by:
                self.forget(body)

    def enlisted(self, body: int) -> None:
        """It is ready for a round; if that is its first one, whoever is replaced need not wait longer."""
        if not self.known[body].ready:
            for known in self.known.values():
                known.leave_at = self._clock() if known.replaced else known.leave_at
        self.known[body].ready, self._stillborn = True, 0

    def ended(self, body: int) -> Known | None:
        """A body ended by itself: what was known of it."""
        known = self.forget(body)
        if known is not None and not known.ready and not known.let_go:
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._stillborn)
            self._stillborn, self._ask_after = self._stillborn + 1, self._clock() + pause
        return known

    def forget(self, body: int) -> Known | None:
        """A body is no more, or must be: what was known of it."""
        known = self.known.pop(body, None)
        if known is not None:
            assert self._switchboard is not None
            self._switchboard.drop(body)
            self._cluster.end(body)
        return known

    def send(self, bodies: Iterable[int], message: Mapping[str, object]) -> None:
        """Send a message to each."""
        assert self._switchboard is not None
        for body in bodies:
            self._switchboard.send(body, message)
