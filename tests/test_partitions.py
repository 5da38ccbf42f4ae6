"""A network that falls apart: who is left out, that the others go on, and that everybody comes back."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_world import World, nodes, until
from hypothesis import given
from hypothesis import strategies as st

from raylm.coordination import hub
from raylm.coordination.pace import STILL_SECONDS
from raylm.coordination.reach import FIRST_PAUSE_SECONDS, left_out
from raylm.run.events import Resumed, Warned, WorkerLost
from raylm.runtime.ports import free_port, listening

Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(hub, "TURN_SECONDS", 0.01)
    made: list[World] = []

    def world(names: str, size: tuple[int, int], **workers: Any) -> World:
        made.append(World(tmp_path, names, size, **workers))
        return made[-1]

    yield world
    for each in made:
        each.hub.close()


# --- whom to leave out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parted", "out"),
    [
        ([], set()),
        ([(0, 1)], {1}),
        ([(1, 0), (0, 1)], {1}),
        ([(3, 0), (3, 1), (3, 2)], {3}),
        ([(0, 1), (0, 2), (0, 3)], {0}),
        ([(0, 3), (0, 4), (1, 3), (1, 4), (2, 3), (2, 4)], {3, 4}),
        ([(0, 2), (0, 3), (1, 2), (1, 3)], {2, 3}),
    ],
    ids=["nobody", "the later of two", "told by both", "the last", "the first", "the smaller part", "the later half"],
)
def test_as_few_as_can_be_are_left_out(parted: list[tuple[int, int]], out: set[int]) -> None:
    assert left_out([0, 1, 2, 3, 4], parted) == out


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda pair: pair[0] != pair[1])))
def test_whoever_stays_reaches_all_who_stay(parted: list[tuple[int, int]]) -> None:
    out = left_out(range(8), parted)
    stay = set(range(8)) - out
    assert stay
    assert not [pair for pair in parted if set(pair) <= stay]
    assert out <= {one for pair in parted for one in pair}, "nobody is left out without a reason"


@given(st.integers(2, 40), st.randoms(use_true_random=False))
def test_of_two_parts_the_larger_goes_on(size: int, dice: random.Random) -> None:
    part = set(dice.sample(range(size), dice.randrange(1, (size + 1) // 2) if size > 2 else 1))
    parted = [(one, other) for one, other in itertools.permutations(range(size), 2) if (one in part) != (other in part)]
    out = left_out(range(size), parted)
    assert out == part or 2 * len(part) == size


def test_who_listens_is_found_and_who_does_not_is_not() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"127.0.0.1:{server.getsockname()[1]}"
        found = listening({1: there, 2: f"127.0.0.1:{free_port()}", 3: there}, patience_seconds=1.0)
    assert found == [1, 3]
    assert listening({}, patience_seconds=1.0) == []


# --- the hub ------------------------------------------------------------------------------------------------------


def warned(world: World) -> list[str]:
    return [event.message for event in world.events(Warned)]


def test_who_does_not_reach_the_others_is_left_out_and_comes_back_when_it_does(make: Make) -> None:
    world = make("a b c", (1, 3))
    group = world.group(3)
    world.train(group, steps=5)
    world.cluster.parted = [{"a", "c"}]
    for body in group:
        body.enlist("broken")  # as each one's collective fails
    after = world.group(2)
    assert nodes(after) == ["a", "b"]
    assert after[0].place["resume"][:2] == [group[0].generation, 5] or after[0].step == 5
    assert [message for message in warned(world) if "workers on c do not reach all others" in message]
    assert not world.events(WorkerLost), "nobody is lost"
    world.train(after)
    assert world.events(Resumed)[-1].steps_lost in (0, None)
    world.pass_time(FIRST_PAUSE_SECONDS + 1)
    assert len(until(lambda: group[2].said("try"))) > 1, "it tries again"
    assert not any("again" in message for message in warned(world))
    world.cluster.parted = []
    world.pass_time(60.0)
    until(lambda: any("workers on c reach the others again" in message for message in warned(world)))
    assert sorted(nodes(world.group(3))) == ["a", "b", "c"]


def test_a_group_that_broke_by_itself_and_reaches_everybody_goes_on_as_it_was(make: Make) -> None:
    world = make("a b c", (1, 3))
    group = world.group(3)
    world.train(group)
    for body in group:
        body.enlist("broken", "no route")
    assert nodes(world.group(3)) == ["a", "b", "c"]
    assert [len(body.said("try")) for body in group] == [1, 1, 1]
    (message,) = warned(world)
    assert message == "a group of 3 workers broke, though all reach each other: no route"


def test_a_group_whose_member_died_does_not_wait_for_a_check(make: Make) -> None:
    world = make("a b c", (1, 3))
    group = world.group(3)
    world.train(group)
    group[2].deaf = True  # what is dying does not come back when it is cut
    group[0].enlist("broken")
    group[1].enlist("broken")
    group[2].die()
    assert nodes(world.group(2)) == ["a", "b"]
    assert not [body for body in group if body.said("try")]


def test_a_group_that_stands_still_is_cut_where_the_network_is_parted(make: Make) -> None:
    world = make("a b c", (1, 3), silence_seconds=1000)
    group = world.group(3)
    world.train(group, steps=3)
    for body in group:
        body.busy = True
    world.cluster.parted = [{"b", "c"}]
    world.pass_time(STILL_SECONDS - 1)
    assert not [body for body in group if body.said("try")]
    world.pass_time(2.0)
    assert nodes(world.group(2)) == ["a", "b"]
    assert [len(body.said("cut")) for body in group] == [1, 1, 1]


def test_a_group_that_stands_still_for_another_reason_is_left_alone(make: Make) -> None:
    world = make("a b c", (1, 3), silence_seconds=1000)
    group = world.group(3)
    world.train(group, steps=3)
    world.pass_time(STILL_SECONDS + 1)
    until(lambda: all(body.said("try") for body in group))
    world.pass_time(STILL_SECONDS + 1)
    assert not [body for body in group if body.said("cut")]
    assert not warned(world)


def test_long_steps_are_no_standstill(make: Make) -> None:
    world = make("a b", (1, 2), silence_seconds=1000)
    group = world.group(2)
    world.train(group, steps=3, seconds=60.0)
    world.pass_time(80.0)
    assert not [body for body in group if body.said("try")]
    world.pass_time(20.0)
    until(lambda: all(body.said("try") for body in group))


def test_another_body_is_asked_for_while_one_is_left_out(make: Make) -> None:
    world = make("a b c", (1, 3))
    group = world.group(3)
    world.train(group, steps=2)
    world.cluster.parted = [{"a", "c"}, {"b", "c"}]
    for body in group:
        body.enlist("broken")
    after = world.group(2)
    world.train(after)
    world.cluster.add("d")
    assert nodes(world.group(3)) == ["a", "b", "d"]
    world.cluster.parted = []
    world.pass_time(60.0)
    assert until(lambda: group[2].said("leave")), "its place is taken"


def test_a_run_that_needs_all_waits_until_they_reach_each_other(make: Make) -> None:
    world = make("a b", (2, 2))
    group = world.group(2)
    world.train(group, steps=2)
    world.cluster.parted = [{"a", "b"}]
    for body in group:
        body.enlist("broken")
    until(lambda: warned(world))
    world.turns()
    world.cluster.parted = []
    after = world.group(2, passing=0.05)  # an answer from before may come late, and be asked for again after a pause
    assert after[0].step == 2, "nothing is lost"
