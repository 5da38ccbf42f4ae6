"""The state machine of a run's membership: examples, and what holds after any schedule of calls."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylm.errors import TrainingError
from raylm.train.coordination import Generation, Reason
from raylm.train.membership import GroupEnd, Membership, culprits

MAX_FAILURES = 2
RESTARTS = (Reason.GROW, Reason.PREEMPTION_NOTICE)


def begun(members: Membership, number: int, size: int = 2) -> Generation:
    generation = members.begin(number, size).generation
    for rank in range(size):
        assert members.register(generation, rank, f"node-{rank}", "host:1" if rank == 0 else None)
    return generation


@pytest.fixture
def members() -> Membership:
    return Membership(max_failures=MAX_FAILURES)


def test_a_group_meets_at_the_address_of_its_rank_0_alone(members: Membership) -> None:
    first = begun(members, 1)
    assert members.address(first) == "host:1"
    second = members.begin(2, 2).generation
    assert members.address(second) is None
    assert not members.register(first, 0, "node-9", "old:1"), "a late registration"
    members.register(second, 1, "node-1", None)
    assert members.address(second) is None
    members.register(second, 0, "node-0", "new:1")
    assert (members.address(second), members.address(first)) == ("new:1", None)


def test_registering_twice_counts_once_and_the_last_word_stands(members: Membership) -> None:
    generation = begun(members, 1)
    members.register(generation, 1, "elsewhere", None)
    assert members.nodes == {0: "node-0", 1: "elsewhere"}
    assert members.address(generation) == "host:1"


def test_a_stop_comes_before_growing_and_the_first_of_the_others_stands(members: Membership) -> None:
    generation = begun(members, 1)
    assert members.request(Reason.GROW)
    assert not members.request(Reason.PREEMPTION_NOTICE)
    assert members.stop_requested(generation) is Reason.GROW
    assert members.request(Reason.STOP)
    assert not members.request(Reason.STOP)
    assert not members.request(Reason.GROW)
    assert members.stop_requested(generation) is Reason.STOP


def test_a_stop_waits_for_the_next_group_and_another_reason_does_not(members: Membership) -> None:
    assert not members.request(Reason.GROW), "nobody listens"
    assert members.request(Reason.STOP)
    assert not members.listening
    generation = begun(members, 1)
    assert members.listening
    assert members.stop_requested(generation) is Reason.STOP
    members.stopped(generation, Reason.STOP)
    assert members.ended() == GroupEnd(again=False)


def test_growth_requested_of_a_group_that_dies_is_forgotten(members: Membership) -> None:
    members.request(Reason.GROW)
    begun(members, 1)
    members.request(Reason.GROW)
    assert members.ended() == GroupEnd(again=True, failure=True)
    assert members.stop_requested(begun(members, 2)) is None


def test_ending_on_request_is_no_failure(members: Membership) -> None:
    for number, reason in enumerate([*RESTARTS, *RESTARTS], start=1):
        generation = begun(members, number)
        members.request(reason)
        members.stopped(generation, reason)
        assert members.ended() == GroupEnd(again=True)
    assert members.failures == 0


def test_a_stop_that_comes_while_a_group_ends_to_grow_ends_the_next(members: Membership) -> None:
    generation = begun(members, 1)
    members.request(Reason.GROW)
    members.request(Reason.STOP)
    members.stopped(generation, Reason.GROW)  # it had heard of growing only
    assert members.ended() == GroupEnd(again=True)
    assert members.stop_requested(begun(members, 2)) is Reason.STOP


def test_only_a_step_beyond_every_other_ends_a_row_of_failures(members: Membership) -> None:
    for number in range(1, 2 * MAX_FAILURES + 2):
        generation = begun(members, number)
        members.stepped(generation, number)
        assert members.ended() == GroupEnd(again=True, failure=True)
    replayed = 2 * MAX_FAILURES
    for number in range(10, 10 + MAX_FAILURES):
        members.stepped(begun(members, number), replayed)
        end = members.ended()
    assert end == GroupEnd(again=False, failure=True, exhausted=True)


def test_a_run_that_another_driver_took_over_is_stale_but_a_finished_one_stays_finished(members: Membership) -> None:
    generation = begun(members, 1)
    members.supersede(TrainingError("taken over"))
    assert members.stop_requested(generation) is Reason.STALE
    assert members.ended() == GroupEnd(again=False)
    done = Membership(max_failures=0)
    done.finish(begun(done, 1))
    done.supersede(TrainingError("taken over"))
    assert done.error is None


class Schedules(RuleBasedStateMachine):
    """Any order of calls, of the newest generation and of older ones, held against a plain account of them."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Membership(max_failures=MAX_FAILURES)
        self.number = 0
        self.stop_asked = False
        self.in_a_row = 0
        self.best = 0
        self.running = False
        self.saved_for: Reason | None = None

    def generation(self, age: int) -> Generation:
        return Generation(max(0, self.number - age))

    @precondition(lambda self: not self.running)
    @rule(skipped=st.integers(1, 3), size=st.integers(1, 4))
    def begin(self, skipped: int, size: int) -> None:
        self.number += skipped
        assignment = self.members.begin(self.number, size)
        assert assignment.generation == assignment.fence == assignment.attempt == self.number
        assert self.members.nodes == {}
        assert not self.members.listening
        self.running, self.saved_for = True, None

    @rule(age=st.integers(0, 2), rank=st.integers(0, 3), node=st.sampled_from("abc"))
    def register(self, age: int, rank: int, node: str) -> None:
        if not self.running and age == 0:
            return  # members of an ended group are gone
        before = dict(self.members.nodes)
        heard = self.members.register(self.generation(age), rank, node, f"{node}:1" if rank == 0 else None)
        assert heard == (self.generation(age) == self.number)
        assert self.members.nodes == (before | {rank: node} if heard else before)

    @rule(reason=st.sampled_from([Reason.GROW, Reason.PREEMPTION_NOTICE, Reason.STOP]))
    def request(self, reason: Reason) -> None:
        before = self.members.requested
        changed = self.members.request(reason)
        assert changed == (self.members.requested is not before)
        if reason is Reason.STOP and not self.members.finished:
            self.stop_asked = True

    @rule(age=st.integers(0, 2), step=st.integers(0, 30))
    def step(self, age: int, step: int) -> None:
        before = self.members.last_step
        heard = self.members.stepped(self.generation(age), step)
        assert self.members.last_step == (step if heard else before)
        if heard and step > self.best:
            self.best, self.in_a_row = step, 0

    @rule(age=st.integers(0, 2), step=st.integers(0, 30))
    def start(self, age: int, step: int) -> None:
        before = self.members.last_step
        again = self.members.started(self.generation(age), step)
        assert again == (max(0, before - step) if self.generation(age) == self.number else None)

    @rule(age=st.integers(0, 2))
    def leave_as_requested(self, age: int) -> None:
        reason = self.members.stop_requested(self.generation(age))
        if reason is None or reason is Reason.STALE:
            return
        assert self.members.stopped(self.generation(age), reason)
        self.saved_for = reason

    @rule(age=st.integers(1, 2), reason=st.sampled_from(Reason))
    def late_words_of_an_older_group(self, age: int, reason: Reason) -> None:
        if self.generation(age) == self.number:
            return
        assert not self.members.stopped(self.generation(age), reason)
        assert not self.members.fail(self.generation(age), TrainingError("late"))
        assert not self.members.finish(self.generation(age))
        assert self.members.stop_requested(self.generation(age)) is Reason.STALE

    @precondition(lambda self: self.running)
    @rule()
    def end(self) -> None:
        end = self.members.ended()
        self.running = False
        if self.saved_for is not None:
            assert end == GroupEnd(again=self.saved_for is not Reason.STOP)
            return
        self.in_a_row += 1
        assert end.failure
        assert end.again == (self.in_a_row <= MAX_FAILURES)
        assert end.exhausted != end.again

    @invariant()
    def a_stop_is_never_forgotten(self) -> None:
        if self.stop_asked:
            assert self.members.requested is Reason.STOP

    @invariant()
    def counts_agree(self) -> None:
        assert self.members.failures_in_a_row == self.in_a_row
        assert self.members.best_step == self.best
        assert self.members.failures >= self.in_a_row

    @invariant()
    def only_a_group_with_members_listens(self) -> None:
        assert not self.members.listening or self.members.nodes


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=150, stateful_step_count=30)


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ({1: "lost: the actor died"}, [1]),
        ({0: "error: GroupBroken: rank 0 lost a peer", 1: "lost: the actor died"}, [1]),
        ({0: "error: GroupBroken: rank 0 lost a peer", 2: "error: ValueError: mine"}, [2]),
        ({0: "error: GroupBroken: rank 0 lost a peer", 2: "error: GroupBroken: rank 2 lost a peer"}, [1]),
        (dict.fromkeys(range(3), "error: GroupBroken: a network fell apart"), [0, 1, 2]),
    ],
)
def test_who_ended_a_group_is_told_from_who_lost_a_peer(losses: dict[int, str], found: list[int]) -> None:
    assert sorted(culprits(losses, range(3))) == found
