"""Rounds under any schedule of messages, deaths and requests; and that these schedules find a broken Rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from rounds_model import Body, World

from raylm.coordination.rounds import Held, Rounds, _State

TURNS = st.integers(0, 9)
BODY = st.integers(0, 7)
ANY = st.integers(0, 20)


class Schedules(RuleBasedStateMachine):
    """Anything may happen to bodies and messages, in any order."""

    rounds: type[Rounds] = Rounds
    progress = True  # whether it is checked

    @initialize(min_size=st.integers(1, 3), room=st.integers(0, 3), bodies=st.integers(1, 5), turns=st.integers(0, 30))
    def begin(self, min_size: int, room: int, bodies: int, turns: int) -> None:
        self.world = World(self.rounds, min_size, min_size + room)
        for number in range(bodies):
            self.world.bear(f"node-{number % 3}")
        self.world.calm(turns)

    def body(self, number: int) -> Body:
        """One that is not known to be gone, where there is one."""
        there = [body for body in self.world.bodies if body.able] or self.world.bodies
        return there[number % len(there)]

    @rule(nodes=st.lists(st.integers(0, 2), min_size=1, max_size=3), turns=TURNS)
    def join(self, nodes: list[int], turns: int) -> None:
        for node in nodes[: 8 - sum(body.able for body in self.world.bodies)]:
            self.world.bear(f"node-{node}")
        self.world.calm(turns)

    @rule(number=BODY, does=st.sampled_from(["start", "hear", "read", "advance", "advance", "notice_loss"]))
    def one_thing(self, number: int, does: str) -> None:
        getattr(self.world, does)(self.body(number))

    @rule(does=st.sampled_from(["close", "cut", "regroup", "commit"]))
    def hub(self, does: str) -> None:
        getattr(self.world, does)()

    @rule(turns=st.integers(1, 20))
    def calm(self, turns: int) -> None:
        self.world.calm(turns)

    @rule(number=BODY, turns=TURNS)
    def raise_an_error(self, number: int, turns: int) -> None:
        self.world.leave_group(self.body(number))
        self.world.calm(turns)

    @rule(numbers=st.sets(BODY, min_size=1, max_size=3), at_once=st.booleans(), turns=TURNS)
    def kill(self, numbers: set[int], at_once: bool, turns: int) -> None:
        """Bodies die together; the hub learns of it before or after the others notice."""
        bodies = [self.body(number) for number in numbers]
        for body in bodies:
            body.alive = False
        self.world.calm(0 if at_once else turns)
        for body in bodies:
            self.world.give_up(body)
        self.world.calm(turns)

    @rule(number=BODY, patience=TURNS, turns=TURNS)
    def freeze(self, number: int, patience: int, turns: int) -> None:
        body = self.body(number)
        body.frozen = True
        self.world.calm(patience)
        self.world.give_up(body)
        self.world.calm(turns)

    @rule(number=BODY, turns=TURNS)
    def freeze_a_moment(self, number: int, turns: int) -> None:
        self.body(number).frozen = True
        self.world.calm(turns)

    @rule(turns=TURNS)
    def thaw(self, turns: int) -> None:
        for body in self.world.bodies:
            body.frozen = False
        self.world.calm(turns)

    @rule(number=ANY)
    def run_out_of_patience(self, number: int) -> None:
        """With any body: it may be well, or long gone."""
        self.world.give_up(self.world.bodies[number % len(self.world.bodies)])

    @rule(number=ANY)
    def hear_twice(self, number: int) -> None:
        body = self.world.bodies[number % len(self.world.bodies)]
        if body.last_words is not None:
            body.said.append(body.last_words)

    @rule(number=ANY)
    def hear_late(self, number: int) -> None:
        self.world.hear(self.world.bodies[number % len(self.world.bodies)])

    @rule(numbers=st.sets(BODY, min_size=1, max_size=4), turns=TURNS)
    def drain(self, numbers: set[int], turns: int) -> None:
        for body in [self.body(number) for number in numbers]:
            self.world.drain(body)
        self.world.calm(turns)

    @rule(numbers=st.sets(BODY, max_size=3), turns=TURNS)
    def part(self, numbers: set[int], turns: int) -> None:
        """The network falls apart, or is whole again."""
        self.world.part({self.body(number).id for number in numbers})
        self.world.calm(turns)

    @rule(size=st.integers(1, 6), turns=TURNS)
    def limit(self, size: int, turns: int) -> None:
        self.world.limit(size)
        self.world.calm(turns)

    @rule()
    def give_up_waiting(self) -> None:
        self.world.rounds.give_up_waiting()

    @rule()
    def faults_cease(self) -> None:
        if self.progress:
            self.world.check_progress()

    @invariant()
    def one_group_trains(self) -> None:
        if hasattr(self, "world"):
            self.world.check_one_group()


ANY_PACE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(ANY_PACE, max_examples=100, stateful_step_count=40)


@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_long_schedules() -> None:
    long = settings(ANY_PACE, max_examples=3000, stateful_step_count=60, database=None)
    run_state_machine_as_test(Schedules, settings=long)


def test_a_leaver_that_alone_holds_a_shard_stays_while_nobody_reaches_it() -> None:
    """A schedule that the long ones found: newcomers, who hold nothing, were taken for those who stay."""
    found = Schedules()
    found.begin(min_size=3, room=0, bodies=1, turns=0)
    found.join(nodes=[0, 0], turns=0)
    found.faults_cease()
    found.drain(numbers={0, 1}, turns=0)
    found.faults_cease()
    found.part(numbers={0, 1, 2}, turns=0)
    found.join(nodes=[0, 0], turns=1)
    found.faults_cease()
    assert found.world.told > 37
    assert not found.world.told_to_leave - {1, 2}


class Impatient(Rounds):
    """Closes without hearing every member, as after a timeout."""

    def _all_heard(self) -> bool:
        return True


class Credulous(Rounds):
    """Believes an enlistment whenever it comes."""

    def enlist(self, body: int, address: str, held: Sequence[Held], *, left: int) -> bool:
        return super().enlist(body, address, held, left=self._bodies[body].generation)


class Careless(Rounds):
    """Lets bodies leave without asking what they hold."""

    def _chosen(self, state: Held | None) -> list[Any]:
        return super()._chosen(None)


class Backward(Rounds):
    """Resumes from storage whatever the bodies hold."""

    def _newest(self, ready: Sequence[Any] | None = None) -> Held | None:
        return None


class Deaf(Rounds):
    """Takes in whoever is ready, whether or not the others reach it."""

    def _ready(self) -> list[Any]:
        return self._bodies_in(_State.READY)


class Idle(Rounds):
    """Wants no regroup."""

    def regroup_wanted(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (Impatient, "split brain|told step is lost"),
        (Credulous, "split brain|told step is lost"),
        (Careless, "do not hold"),
        (Backward, "told step is lost"),
        (Deaf, "does not reach the others"),
        (Idle, "no group of the right size|a leaver stays"),
    ],
)
def test_the_schedules_find_what_is_wrong_with(broken: type[Rounds], found: str) -> None:
    machine = type(broken.__name__, (Schedules,), {"rounds": broken, "progress": broken is Idle})
    once = settings(ANY_PACE, max_examples=500, database=None, derandomize=True, phases=[Phase.generate])
    once = settings(once, report_multiple_bugs=False)
    with pytest.raises(AssertionError, match=found):
        run_state_machine_as_test(machine, settings=once)


def test_two_groups_train_where_a_round_closes_without_hearing_the_members() -> None:
    world = World(Impatient, 1, 2)
    world.bear("a")
    world.calm(5)
    assert len(world.training()) == 1
    world.bear("b")
    joining = world.bodies[1]
    world.start(joining)
    world.hear(joining)
    world.hear(joining)
    world.close()
    world.read(joining)
    with pytest.raises(AssertionError, match="two groups"):
        world.check_one_group()
