"""A world of fake bodies around Rounds: they train, copy, die, freeze and come, and every message may be late.

A body's life in a group is a row of collectives, three a step: the step's state is whole, it is copied (own shard and
the left neighbour's), all agree that it is. A body passes a collective once every other member has entered it. What is
agreed is told, and from then on it may be lost only with a shard's every holder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from raylm.coordination.rounds import Held, Place, Round, Rounds

STATE, COPY, AGREE = range(3)


@dataclass
class Group:
    """One generation as its members see it. passed: by body, the collectives it has passed; leave_at: then all go."""

    places: dict[int, Place]
    generation: int
    start: int
    passed: dict[int, int] = field(default_factory=dict)
    leave_at: int | None = None


@dataclass
class Body:
    """A fake body; said and heard are the messages on their way from and to it."""

    id: int
    node: str
    alive: bool = True
    frozen: bool = False
    ended: bool = False
    started: bool = False
    generation: int = 0
    group: Group | None = None
    held: list[Held] = field(default_factory=list)
    said: deque[tuple[str, list[Held], int]] = field(default_factory=deque)
    heard: deque[str | Group] = field(default_factory=deque)
    last_words: tuple[str, list[Held], int] | None = None

    @property
    def able(self) -> bool:
        return self.alive and not self.frozen and not self.ended

    def say(self, kind: str) -> None:
        self.last_words = (kind, list(self.held), self.generation)
        self.said.append(self.last_words)


class World:
    """The hub around Rounds, and its bodies. Every method is one thing that may happen next; many do nothing."""

    def __init__(self, rounds: Callable[[int, int], Rounds], min_size: int, max_size: int) -> None:
        self.rounds = rounds(min_size, max_size)
        self.min_size = min_size
        self.max_size = self.cap = max_size
        self.bodies: list[Body] = []
        self.groups: list[Group] = []
        self.gone: set[int] = set()
        self.told_to_leave: set[int] = set()
        self.leaving: set[int] = set()
        self.apart: set[int] = set()
        self.claims: dict[int, list[Held]] = {}  # what each body said that it holds
        self.placed: dict[int, int] = {}  # body: its newest generation
        self.holders: dict[tuple[int, int, int], dict[int, set[int]]] = {}  # (generation, step, size): rank: bodies
        self.agreed = (0, 0, 0)  # the last that any member agreed on; older ones may have been dropped since
        self.committed = self.told = 0

    # Bodies

    def bear(self, node: str) -> None:
        self.bodies.append(Body(len(self.bodies) + 1, node))
        self.bodies[-1].say("arrived")

    def start(self, body: Body) -> None:
        if body.able and not body.started:
            body.started = True
            body.say("enlist")

    def read(self, body: Body) -> None:
        if not body.able or not body.heard:
            return
        message = body.heard.popleft()
        if isinstance(message, Group):
            assert body.group is None, "split brain: placed while it trains in another group"
            body.group, body.generation = message, message.generation
            message.passed[body.id] = 0
        elif message == "leave":
            body.ended, body.group = True, None
        elif message == f"cut {body.generation}":
            self.leave_group(body)

    def leave_group(self, body: Body) -> None:
        if body.able and body.group is not None:
            body.group = None
            body.say("enlist")

    def notice_loss(self, body: Body) -> None:
        """A collective fails where another member will not come. A frozen one is not noticed."""
        group = body.group
        if group is None:
            return
        for other in self.others(body, group):
            away = other.group is not group and other.id in group.passed
            behind = group.passed.get(other.id, -1) <= group.passed[body.id]
            if behind and (away or other.ended or not other.alive):
                return self.leave_group(body)

    def advance(self, body: Body) -> None:
        """Pass the next collective, if every other member has entered it."""
        group = body.group
        if not body.able or group is None:
            return
        passed = group.passed[body.id]
        if passed == group.leave_at:
            return self.leave_group(body)
        for other in self.others(body, group):
            theirs = group.passed.get(other.id, -1)
            if not (theirs > passed or (theirs == passed and other.able and other.group is group)):
                return None
        group.passed[body.id] = passed + 1
        more, kind = divmod(passed, 3)
        size = len(group.places)
        key = (group.generation, group.start + more, size)
        rank = group.places[body.id].rank
        if kind == COPY:
            ranks = frozenset({rank, (rank - 1) % size})
            own = [held for held in body.held if held.generation == group.generation]
            body.held = [held for held in body.held if held not in own[:-1]] + [Held(*key, ranks)]
            for shard in ranks:
                self.holders.setdefault(key, {}).setdefault(shard, set()).add(body.id)
        elif kind == AGREE:
            body.held = [held for held in body.held if held.generation == group.generation]
            if group.generation == self.rounds.generation:
                self.agreed = max(self.agreed, key)
                self.told = max(self.told, key[1])
        return None

    def others(self, body: Body, group: Group) -> list[Body]:
        return [self.bodies[number - 1] for number in group.places if number != body.id]

    # The hub

    def hear(self, body: Body) -> None:
        if not body.said:
            return
        kind, held, left = body.said.popleft()
        if kind == "arrived":
            welcome = self.rounds.arrived(body.id, body.node)
        else:
            if left == self.placed.get(body.id, 0):
                self.claims[body.id] = held
            welcome = self.rounds.enlist(body.id, f"host:{body.id}", held, left=left)
        assert welcome != (body.id in self.gone | self.told_to_leave), "heard the wrong bodies"
        if not welcome:
            body.heard.append("leave")

    def give_up(self, body: Body) -> None:
        """Proved dead, or silent for too long; what it hears next is that its line to the hub is cut."""
        assert self.rounds.gone(body.id) <= (body.id not in self.gone | self.told_to_leave)
        self.gone.add(body.id)
        body.heard.append("leave")

    def drain(self, body: Body) -> None:
        self.rounds.leaving([body.id])
        self.leaving.add(body.id)

    def part(self, numbers: set[int]) -> None:
        """These do not reach the others from now on: what trains with both is cut."""
        self.rounds.apart(numbers)
        self.apart = numbers
        group = self.groups[-1] if self.groups else None
        if group is not None and numbers & set(group.places):
            for number in group.places:
                self.bodies[number - 1].heard.append(f"cut {group.generation}")

    def limit(self, size: int) -> None:
        self.rounds.limit(size)
        self.cap = min(size, self.max_size)

    def commit(self) -> None:
        self.committed = max(self.committed, self.told)

    def cut(self) -> None:
        for number in self.rounds.unheard():
            self.bodies[number - 1].heard.append(f"cut {self.rounds.generation}")

    def regroup(self) -> None:
        group = self.groups[-1] if self.groups else None
        if group is not None and group.leave_at is None and self.rounds.regroup_wanted():
            group.leave_at = 3 * (max(group.passed.values(), default=0) // 3 + 1)

    def close(self) -> None:
        before = self.rounds.generation
        members = set(self.groups[-1].places) if self.groups else set()
        closed = self.rounds.close(self.committed)
        leave = self.rounds.dismiss() if closed is None else closed.leave
        assert not self.told_to_leave & set(leave), "told twice to leave"
        self.told_to_leave |= set(leave)
        for number in leave:
            self.bodies[number - 1].heard.append("leave")
        if closed is None:
            return
        assert set(closed.lost) == members & self.gone - self.told_to_leave, "counted losses wrongly"
        self.check(closed, before + 1)
        step = self.check_nothing_lost(closed)
        self.told = min(self.told, step)
        self.groups.append(Group(dict(closed.places), before + 1, step))
        for number in closed.places:
            self.placed[number] = before + 1
            self.bodies[number - 1].heard.append(self.groups[-1])

    # What must hold

    def check(self, closed: Round, generation: int) -> None:
        ids = sorted(closed.places, key=lambda number: closed.places[number].rank)
        size = len(ids)
        nodes = tuple(self.bodies[number - 1].node for number in ids)
        for rank, number in enumerate(ids):
            address = f"host:{ids[0]}"
            local = nodes[:rank].count(nodes[rank])
            assert closed.places[number] == Place(generation, rank, size, address, nodes, local, closed.resume)
        assert not set(ids) & (self.gone | self.told_to_leave), "placed a body that is gone"
        assert not set(ids) & self.apart, "placed a body that does not reach the others"
        assert self.min_size <= size <= self.max_size, "a size out of bounds"
        assert self.covers(ids, closed.resume), "resumes from a state that its members do not hold"
        assert closed.resume is None or self.covers_some(ids[0], closed.resume), "rank 0 holds nothing"
        needed = [one for one in ids if not self.covers([other for other in ids if other != one], closed.resume)]
        handed_over = size == 2 and bool(self.leaving & set(needed))
        assert size <= self.cap or len(needed) == size or handed_over, "more members than the limit"

    def covers_some(self, number: int, state: Held) -> bool:
        return any((held.generation, held.step) == (state.generation, state.step) for held in self.claims[number])

    def covers(self, ids: list[int], state: Held | None) -> bool:
        if state is None:
            return True
        claims = [held for number in ids for held in self.claims[number]]
        same = [held.ranks for held in claims if (held.generation, held.step) == (state.generation, state.step)]
        return frozenset().union(*same) == frozenset(range(state.size))

    def check_nothing_lost(self, closed: Round) -> int:
        """The step that the round resumes from: older than the last one told only where a shard has no holder left."""
        step = closed.resume.step if closed.resume is not None else self.committed
        assert step >= self.committed, "older than storage"
        dead = self.gone | self.apart | {body.id for body in self.bodies if not body.alive}
        if step < self.told:
            assert self.agreed[1] == self.told
            vanished = [ids for ids in self.holders[self.agreed].values() if ids <= dead | self.told_to_leave]
            assert any(ids & dead for ids in vanished), "a told step is lost"
        return step

    def training(self) -> list[Group]:
        """The groups that can go on: every member is in it, and none is about to hear that it must leave."""

        def whole(group: Group) -> bool:
            members = [self.bodies[number - 1] for number in group.places]
            return all(body.able and body.group is group and "leave" not in body.heard for body in members)

        return [group for group in self.groups if whole(group)]

    def check_one_group(self) -> None:
        assert len(self.training()) <= 1, "split brain: two groups train at once"

    # Without faults

    def calm(self, turns: int) -> None:
        """Everything that is under way arrives, and nothing breaks."""
        for _ in range(turns):
            for body in self.bodies:
                self.start(body)
                while body.said:
                    self.hear(body)
            self.close()
            self.cut()
            self.regroup()
            for body in self.bodies:
                while body.able and body.heard:
                    self.read(body)
                self.notice_loss(body)
                self.advance(body)
            self.check_one_group()

    def check_progress(self) -> None:
        """Once faults cease a group of the right size trains, or Rounds says that bodies are lacking."""
        self.part(set())
        for body in self.bodies:
            if not body.alive or body.frozen:
                self.give_up(body)
        self.calm(100)
        before = self.told
        self.calm(12)
        staying = [body for body in self.bodies if body.able and body.id not in self.leaving]
        size = min(self.cap, len(staying))
        if size >= self.min_size:
            sizes = [len(group.places) for group in self.training()]
            assert sizes == [size], "no group of the right size trains"
            (group,) = self.training()
            assert self.max_size == 1 or not set(group.places) & self.leaving, "a leaver stays"
        assert bool(self.training()) == (self.rounds.lacking() == 0), "nothing happens and nobody is told why"
        assert not self.training() or self.told > before, "no step is finished"
