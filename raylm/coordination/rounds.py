"""Who trains together next: decisions alone, from what bodies say and what is known of them.

Bodies come, hold state in host memory, leave their generation and die; out comes, round by round, who is which rank of
the next generation and which state it resumes from. No I/O, threads or clock. A round closes only when every member of
the last generation has left it or is gone, so no two generations train at once; who is gone or was told to leave is
never placed again; a state that the ready bodies hold whole is not given up for an older one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True)
class Held:
    """The shards of `ranks` of a state that one body holds in host memory. size: ranks it was sharded over."""

    generation: int
    step: int
    size: int
    ranks: frozenset[int]


@dataclass(frozen=True)
class Place:
    """A body's part in a generation. address: of rank 0's store. nodes: of each rank. resume: None is storage."""

    generation: int
    rank: int
    size: int
    address: str
    nodes: tuple[str, ...]
    local_rank: int
    resume: Held | None


@dataclass(frozen=True)
class Round:
    """A closed round. leave: bodies to end. lost: members of the last generation that are gone since it formed."""

    places: Mapping[int, Place]
    leave: tuple[int, ...]
    lost: tuple[int, ...]
    resume: Held | None


class _State(Enum):
    STARTING = auto()  # arrived, not yet enlisted
    READY = auto()
    MEMBER = auto()  # placed in the newest generation, not enlisted since
    LEFT = auto()  # told to leave
    GONE = auto()


@dataclass
class _Body:
    """generation: the one it was placed in last, 0 for none. rank: its rank there."""

    id: int
    node: str
    state: _State = _State.STARTING
    generation: int = 0
    rank: int = 0
    address: str = ""
    held: tuple[Held, ...] = ()


class Rounds:
    """Gathers bodies into generations of min_size to max_size members, numbered from first_generation."""

    def __init__(self, min_size: int, max_size: int, first_generation: int = 1) -> None:
        assert min(min_size, first_generation) >= 1, "generation 0 is for bodies that were never placed"
        self.generation = first_generation - 1  # the newest
        self._min_size, self._max_size, self._limit = min_size, max_size, max_size
        self._bodies: dict[int, _Body] = {}
        self._members: list[_Body] = []  # of the newest generation, by rank, whatever became of them
        self._leaving: set[int] = set()
        self._apart: set[int] = set()
        self._committed = 0
        self._waits = True

    def arrived(self, body: int, node: str) -> bool:
        """A body starts on `node`; False when it is gone or was told to leave."""
        return self._bodies.setdefault(body, _Body(body, node)).state not in (_State.LEFT, _State.GONE)

    def enlist(self, body: int, address: str, held: Sequence[Held], *, left: int) -> bool:
        """A body is ready for the next round, its store at `address`; False when it must leave.

        left: the generation it was placed in last, 0 for none. A member thereby leaves it. An enlistment that was
        sent before the body was placed names an older one and changes nothing.
        """
        known = self._bodies.get(body)
        if known is None or known.state in (_State.LEFT, _State.GONE):
            return False
        if left == known.generation:
            known.state, known.address, known.held = _State.READY, address, tuple(held)
        return True

    def gone(self, body: int) -> bool:
        """A body is proved gone, and not heard any more; True when that is news of one that was counted on."""
        known = self._bodies.setdefault(body, _Body(body, "", _State.GONE))
        if known.state in (_State.LEFT, _State.GONE):
            return False
        known.state = _State.GONE
        return True

    def leaving(self, bodies: Iterable[int]) -> None:
        """These bodies leave as soon as the others hold the newest state whole without them.

        Until then they are members one more round. They leave even where too few stay for a round: those keep what
        they hold until newcomers come. Only where nobody at all stays do they train on, until somebody comes. With a
        max_size of 1 nobody can take over in memory, so that one trains on until it is gone.
        """
        self._leaving.update(bodies)

    def apart(self, bodies: Iterable[int]) -> None:
        """These, and only these, do not reach the others: no round has them, and what they hold is not counted on."""
        self._apart = set(bodies)

    def limit(self, size: int) -> None:
        """The most members the next rounds may have, besides max_size; below min_size no round closes."""
        self._limit = size

    def give_up_waiting(self) -> None:
        """The next round does not wait for bodies that are still starting."""
        self._waits = False

    def regroup_wanted(self) -> bool:
        """Whether members should leave at their next step boundary: somebody is to join, or one of them is to leave."""
        members = [body for body in self._members if body.state in (_State.MEMBER, _State.READY)]
        if not members:
            return False
        heirs = [body for body in [*members, *self._ready()] if body.id not in self._leaving]
        joins = any(not self._is_survivor(body) for body in heirs) and len(members) < self._cap()
        leaves = any(body.id in self._leaving for body in members) and bool(heirs) and self._max_size > 1
        return joins or leaves or len(members) > self._cap()

    def unheard(self) -> tuple[int, ...]:
        """Members that neither enlisted nor are gone, once another one has: they may hang on it."""
        silent = tuple(body.id for body in self._members if body.state is _State.MEMBER)
        return silent if len(silent) < len(self._members) else ()

    def whole(self) -> bool:
        """Whether every member of the newest generation has enlisted since: none of them is lost."""
        return bool(self._members) and all(body.state is _State.READY for body in self._members)

    def address(self, body: int) -> str:
        """Where a body's store is, as it said when it enlisted last."""
        return self._bodies[body].address

    def lacking(self) -> int:
        """How many bodies too few are ready for a round; 0 while a member has not been heard."""
        if not self._all_heard():
            return 0
        return max(0, self._min_size - min(self._cap(), len(self._chosen(self._newest()))))

    def dismiss(self) -> tuple[int, ...]:
        """Leaving bodies that nobody needs, each named once: they end now. For when no round closes.

        A state that only bodies hold who do not reach the others now is needed, too: they may reach them again.
        """
        idle = self._bodies_in(_State.STARTING, _State.READY)
        staying = [body for body in self._ready() if body.id not in self._leaving]
        safe = bool(staying) and self._all_heard() and _cover(staying, self._newest(self._bodies_in(_State.READY)))
        return _leave(body for body in idle if body.id in self._leaving and (safe or not self._is_survivor(body)))

    def close(self, committed: int) -> Round | None:
        """Form the next generation if that can be done now. committed: the newest step in storage.

        It resumes from the newest step that the ready bodies hold whole, if that is not older than storage. A start
        from nothing waits for bodies that are starting; survivors do not. Members are the staying survivors by rank,
        then newcomers by id, up to the limit. Those to spare leave, highest ranks first; who holds what nobody else
        does stays one round more, even above the limit. Newcomers above it stay ready.
        """
        self._committed = committed
        resume = self._newest()
        chosen = self._chosen(resume)
        if not self._all_heard() or min(len(chosen), self._cap()) < self._min_size or self._awaits(len(chosen)):
            return None
        lost = tuple(body.id for body in self._members if body.state is _State.GONE)
        staying = {body.id for body in chosen}
        others = [body for body in self._bodies_in(_State.STARTING) + self._ready() if body.id not in staying]
        leave = _leave(body for body in others if self._is_survivor(body) or body.id in self._leaving)
        return Round(self._form(self._by_rank(chosen, resume), resume), leave, lost, resume)

    def _form(self, members: list[_Body], resume: Held | None) -> dict[int, Place]:
        self.generation += 1
        self._members, self._waits = members, True
        nodes = tuple(body.node for body in members)
        places = {}
        for rank, body in enumerate(members):
            local_rank = nodes[:rank].count(body.node)
            places[body.id] = Place(self.generation, rank, len(nodes), members[0].address, nodes, local_rank, resume)
            body.state, body.generation, body.rank, body.held = _State.MEMBER, self.generation, rank, ()
        return places

    def _cap(self) -> int:
        return min(self._max_size, self._limit)

    def _bodies_in(self, *states: _State) -> list[_Body]:
        return [body for body in self._bodies.values() if body.state in states]

    def _ready(self) -> list[_Body]:
        return [body for body in self._bodies_in(_State.READY) if body.id not in self._apart]

    def _is_survivor(self, body: _Body) -> bool:
        return 0 < body.generation == self.generation

    def _all_heard(self) -> bool:
        return all(body.state is not _State.MEMBER for body in self._members)

    def _awaits(self, size: int) -> bool:
        """Whether a round of this size should wait for bodies that are still starting."""
        if not self._waits or size >= self._cap() or any(body.held for body in self._ready()):
            return False
        return any(body.id not in self._leaving for body in self._bodies_in(_State.STARTING))

    def _newest(self, ready: Sequence[_Body] | None = None) -> Held | None:
        """The newest state that the ready, or these, hold whole, unless storage holds a newer one.

        States of one step are equal, whichever generation made them. A higher step of an older generation is not
        given up either: had it been lost and trained again, nobody could hold it whole.
        """
        ranks: dict[tuple[int, int, int], set[int]] = {}
        for held in (held for body in (self._ready() if ready is None else ready) for held in body.held):
            ranks.setdefault((held.step, held.generation, held.size), set()).update(held.ranks)
        whole = [key for key, found in ranks.items() if found.issuperset(range(key[2]))]
        if not whole or max(whole)[0] < self._committed:
            return None
        step, generation, size = max(whole)
        return Held(generation, step, size, frozenset(range(size)))

    def _chosen(self, state: Held | None) -> list[_Body]:
        """The next members, in no order of rank: all that are ready, less those who can be spared and should be."""
        ready = self._ready()
        stays = any(body.id not in self._leaving for body in ready)
        going = self._leaving if stays and self._max_size > 1 else frozenset()
        able = [body for body in ready if body.id not in self._leaving or self._is_survivor(body)]
        chosen = order = sorted(able, key=lambda body: (body.id in going, *self._seniority(body)))
        for body in reversed(order):
            rest = [other for other in chosen if other is not body]
            hands_over = any(other.id in going for other in chosen)  # to another one, even where one is the limit
            if (body.id in going or len(chosen) > max(self._cap(), 2 * hands_over)) and _cover(rest, state):
                chosen = rest
        return chosen

    def _by_rank(self, chosen: Sequence[_Body], resume: Held | None) -> list[_Body]:
        """Node by node. A holder of the resumed state comes first, as rank 0 tells the others its scalars."""

        def key(body: _Body) -> tuple[bool, bool, int]:
            return (resume is not None and not _parts([body], resume), *self._seniority(body))

        first: dict[str, _Body] = {}
        for body in sorted(chosen, key=key):
            first.setdefault(body.node, body)
        return sorted(chosen, key=lambda body: (key(first[body.node]), key(body)))

    def _seniority(self, body: _Body) -> tuple[bool, int]:
        return (False, body.rank) if self._is_survivor(body) else (True, body.id)


def _parts(bodies: Iterable[_Body], state: Held) -> set[int]:
    """The shards of a state that these bodies hold."""
    same = (state.generation, state.step, state.size)
    found = (held for body in bodies for held in body.held if (held.generation, held.step, held.size) == same)
    return {rank for held in found for rank in held.ranks}


def _cover(bodies: Iterable[_Body], state: Held | None) -> bool:
    return state is None or _parts(bodies, state) >= state.ranks


def _leave(bodies: Iterable[_Body]) -> tuple[int, ...]:
    named = sorted(bodies, key=lambda body: body.id)
    for body in named:
        body.state = _State.LEFT
    return tuple(body.id for body in named)
