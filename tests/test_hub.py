"""The hub of a run, with fake bodies: births, rounds, losses, notices, shares, joins, and how a run ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_world import FakeBody, World, nodes, until, wishes

from raylm.coordination import hub
from raylm.coordination.bodies import FIRST_PAUSE_SECONDS, LEAVE_SECONDS, PLACING_SECONDS
from raylm.coordination.contract import Reason
from raylm.coordination.hub import LEAVE_MARGIN_SECONDS
from raylm.coordination.patience import WAITING_SECONDS
from raylm.errors import DataError
from raylm.run.events import (
    CheckpointCommitted,
    PreemptionNotice,
    Resumed,
    ShrinkRequested,
    StopRequested,
    Waiting,
    Warned,
    WorkerLost,
)
from raylm.run.log import RunLog
from raylm.runtime.shares import Share

Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Worlds whose hubs end with the test."""
    monkeypatch.setattr(hub, "TURN_SECONDS", 0.01)
    made: list[World] = []

    def world(nodes: str, size: tuple[int, int], **workers: Any) -> World:
        made.append(World(tmp_path, nodes, size, **workers))
        return made[-1]

    yield world
    for each in made:
        each.hub.close()


# --- a start, and losses ------------------------------------------------------------------------------------------


def test_a_start_waits_for_the_bodies_that_there_is_room_for(make: Make) -> None:
    world = make("a b c", (1, 5))
    group = world.group(3)
    assert sorted(body.place["rank"] for body in group) == [0, 1, 2]
    assert {body.place["address"] for body in group} == {f"{group[0].node}:1"}
    assert all(body.place["nodes"] == nodes(group) and body.place["resume"] is None for body in group)
    assert group[0].generation == world.hub.first_generation, "one generation, and not one for each that came"
    assert len(world.cluster.asked) == 2, "what does not fit is asked for all the same"


def test_a_dead_bodys_group_goes_on_smaller_from_memory_and_grows_back(make: Make) -> None:
    world = make("a b c", (1, 3))
    group = world.group(3)
    world.train(group, steps=7)
    group[1].die()
    after = world.group(2)
    assert nodes(after) == ["a", "c"]
    assert [len(body.said("cut")) for body in after] == [1, 1]
    assert after[0].place["resume"][:3] == [world.hub.first_generation, 7, 3]
    (lost,) = world.events(WorkerLost)
    assert (lost.ranks, lost.nodes, lost.step, lost.message) == ([1], ["b"], 7, "lost: its process ended")
    until(lambda: len(world.cluster.asked) == 1)
    world.train(after)
    assert world.events(Resumed)[-1].micro_batches_redone == 2, "one of each survivor"
    world.cluster.add("d")
    assert nodes(world.group(3)) == ["a", "c", "d"]
    world.cluster.ends.append((after[0].number, "its node died", False))
    assert nodes(world.group(2)) == ["c", "d"], "the cluster may be the first to know"


def test_a_silent_body_is_lost_and_ended_and_not_heard_any_more(make: Make) -> None:
    world = make("a", (1, 2), silence_seconds=0.5)
    (first,) = world.group(1)
    world.train([first])
    world.cluster.beat = 100.0
    world.cluster.add("b")
    _, frozen = world.group(2)
    world.train([first, frozen])
    assert world.group(1) == [first]
    (lost,) = world.events(WorkerLost)
    assert lost.message.startswith("lost: silent for")
    assert world.cluster.killed == [frozen.number]
    until(lambda: not frozen.link.send({"kind": "beat"}))


# --- the failure policy -------------------------------------------------------------------------------------------


def test_the_same_error_at_the_same_step_ends_the_run_in_those_words(make: Make) -> None:
    world = make("a b", (2, 2), max_failures=2)
    group = world.group(2)
    world.train(group, steps=4)
    for attempt in range(3):
        assert not world.hub.over, f"after {attempt} errors: {world.hub.status().error}"
        for body in group:
            body.enlist("error", "ValueError: odd batch")
        if attempt < 2:
            group = world.group(2)
    error = until(lambda: world.hub.status().error)
    assert "failed 3 times in a row at step 4: ValueError: odd batch" in str(error)
    until(lambda: world.hub.status().ended)


def test_an_error_at_a_later_step_is_counted_anew(make: Make) -> None:
    world = make("a b", (2, 2), max_failures=1)
    group = world.group(2)
    for _ in range(5):
        world.train(group)
        group[0].enlist("error", "ValueError: odd batch")
        group = world.group(2)
    assert not world.hub.over
    assert len(group[1].said("cut")) == 5


def test_bodies_that_fail_before_they_are_placed_are_counted(make: Make) -> None:
    world = make("a b c d e", (1, 1), max_failures=2)
    world.cluster.starting = True
    for number in (1, 2, 3):
        until(lambda: len(world.cluster.bodies) >= number)  # noqa: B023
        world.cluster.ends.append((number, "ImportError: no module", True))
        world.turns()
        assert len(world.cluster.bodies) == number, "the next one is asked for later"
        world.pass_time(FIRST_PAUSE_SECONDS * 2 ** (number - 1) + 0.01)
    assert "3 times in a row at step 0: ImportError: no module" in str(until(lambda: world.hub.status().error))


def test_deaths_from_outside_never_end_a_run(make: Make) -> None:
    world = make("keep x", (1, 2), max_failures=0)
    group = world.group(2)
    for number in range(20):
        group[1].die()
        world.group(1)
        world.cluster.add(f"x{number}")
        group = world.group(2)
        world.train(group)
    assert not world.hub.over
    assert len(world.events(WorkerLost)) == 20


# --- notices ------------------------------------------------------------------------------------------------------


def test_a_noticed_body_is_replaced_at_once_and_leaves_by_its_margin(make: Make) -> None:
    world = make("a b", (1, 2))
    group = world.group(2)
    world.train(group, seconds=1.0)
    margin = LEAVE_MARGIN_SECONDS + 2 * (1.0 + 1.0)  # of a step and a regroup, as measured last
    world.cluster.noticed["b"] = 30.0
    until(lambda: world.cluster.asked)
    (notice,) = world.events(PreemptionNotice)
    assert (notice.ranks, notice.grace_seconds) == ([1], 30.0)
    world.pass_time(30.0 - margin - 0.5)
    assert wishes(group) == [[], []], "it trains for as long as it may"
    world.pass_time(1.0)
    assert nodes(world.group(1)) == ["a"]
    until(lambda: group[1].ended)
    assert group[1].said("leave")[0]["orderly"]
    assert len(world.events(PreemptionNotice)) == 1
    assert world.events(WorkerLost) == []


def within_a_step(make: Make) -> tuple[World, list[FakeBody]]:
    """Two members who should finish their step in 50 seconds, and who hear nothing but a cut until then."""
    world = make("a b", (1, 2))
    group = world.group(2)
    world.train(group, seconds=60.0)
    for body in group:
        body.busy = True
    world.pass_time(10.0)
    return world, group


def test_a_step_that_would_outlast_the_notice_is_left_half_done(make: Make) -> None:
    world, group = within_a_step(make)
    world.cluster.noticed["b"] = 49.0
    after = world.group(1)
    assert nodes(after) == ["a"]
    assert [body.said("wish") != [] for body in group] == [True, True], "asked in good order first"
    assert after[0].place["resume"][1] == 1
    assert world.events(WorkerLost) == []


def test_a_step_that_is_finished_before_the_deadline_is_finished(make: Make) -> None:
    world, group = within_a_step(make)
    world.cluster.noticed["b"] = 52.0
    until(lambda: all(body.said("wish") for body in group))
    world.turns()
    assert [body.said("cut") for body in group] == [[], []]
    world.pass_time(53.0)  # it takes longer than it did before
    assert nodes(world.group(1)) == ["a"]


def test_one_regroup_serves_staggered_notices_and_joins(make: Make) -> None:
    world = make("a b c d", (1, 4))
    group = world.group(4)
    world.train(group)
    world.cluster.noticed["b"] = 20.0
    world.turns()
    world.cluster.noticed["d"] = 60.0
    until(lambda: len(world.cluster.asked) == 2)
    world.cluster.add("e", "f")
    world.turns()
    assert wishes(group) == [[]] * 4
    world.pass_time(19.0)
    after = world.group(4)
    assert nodes(after) == ["a", "c", "e", "f"]
    assert after[0].generation == world.hub.first_generation + 1
    assert after[0].place["resume"][1] == 1


def test_a_notice_without_a_deadline_is_heeded_at_once(make: Make) -> None:
    world = make("a b", (1, 2))
    group = world.group(2)
    world.train(group)
    world.cluster.noticed["a"] = None
    assert nodes(world.group(1)) == ["b"]
    assert world.events(PreemptionNotice)[0].grace_seconds is None


def test_members_that_are_all_to_go_save_and_wait_for_a_newcomer(make: Make) -> None:
    world = make("a b", (1, 2))
    group = world.group(2)
    world.train(group, steps=3)
    world.cluster.noticed.update(a=None, b=None)
    until(lambda: wishes(group) == [[Reason.PREEMPTION_NOTICE]] * 2)
    generation = group[0].generation
    world.hub.stopped(generation, Reason.PREEMPTION_NOTICE, 3)
    for body in group:
        body.enlist("regroup")
    world.turns()
    assert {body.generation for body in group} == {generation}
    world.cluster.starting = True
    world.cluster.add("c", "d")
    until(lambda: len(world.cluster.bodies) == 4)
    world.turns()
    assert {body.generation for body in group} == {generation}, "one that only starts cannot take over"
    world.cluster.bodies[3].enlist("new")
    until(lambda: world.cluster.bodies[3].generation > generation)
    assert world.cluster.bodies[3].place["resume"][1] == 3


def test_a_worker_that_is_the_only_one_hands_over_by_storage(make: Make) -> None:
    world = make("a", (1, 1))
    group = world.group(1)
    world.train(group, steps=3)
    world.cluster.noticed.update(a=None)
    until(lambda: wishes(group) == [[Reason.PREEMPTION_NOTICE]])
    world.hub.report_event(group[0].generation, CheckpointCommitted(step=3))
    world.hub.stopped(group[0].generation, Reason.PREEMPTION_NOTICE, 3)
    group[0].enlist("regroup")
    world.turns()
    world.cluster.add("b")
    (heir,) = world.group(1)
    assert (heir.node, heir.place["resume"], heir.place["committed"]) == ("b", None, 3)
    until(lambda: group[0].ended)
    assert world.events(WorkerLost) == []


# --- the run's share, and joins -----------------------------------------------------------------------------------


def test_a_smaller_share_is_given_back_by_the_highest_ranks_and_grown_into_again(make: Make) -> None:
    world = make("a b c", (1, 4))
    group = world.group(3)
    world.train(group)
    world.cluster.may = Share(1, shrink=True)
    after = world.group(1)
    assert nodes(after) == ["a"]
    until(lambda: group[1].ended and group[2].ended)
    world.train(after)
    world.cluster.may = Share(1)
    world.pass_time(PLACING_SECONDS + 1)
    assert len(world.events(ShrinkRequested)) == 1
    until(lambda: not world.cluster.asked)
    assert world.events(WorkerLost) == []
    world.cluster.free += ["d", "e"]
    world.cluster.may = Share(2)
    assert nodes(world.group(2)) == ["a", "d"]


def test_a_second_newcomer_waits_for_the_join_interval(make: Make) -> None:
    world = make("a", (1, 3), join_interval_seconds=30.0)
    group = world.group(1)
    world.train(group)
    world.cluster.add("b")
    second = world.group(2)
    generation = second[0].generation
    world.cluster.add("c")
    world.turns()
    assert len(second[0].said("wish")) == 1, "not before the cost of the last join is known"
    world.train(second)
    world.pass_time(29.0)
    assert {body.generation for body in second} == {generation}
    world.pass_time(2.0)
    assert nodes(world.group(3)) == ["a", "b", "c"]


# --- how it ends --------------------------------------------------------------------------------------------------


def test_a_requested_stop_is_wished_and_ends_once_all_bodies_are_gone(make: Make) -> None:
    world = make("a b", (1, 3))
    group = world.group(2)
    world.train(group)
    group[1].deaf = True
    assert world.hub.request_stop()
    until(lambda: wishes(group) == [[Reason.STOP]] * 2)
    asked = set(world.cluster.asked)  # a turn that saw room before the group had taken it asks for one too many
    world.hub.stopped(group[0].generation, Reason.STOP, 1)
    until(lambda: group[0].ended)
    assert group[0].said("leave")[0]["orderly"]
    assert not world.hub.status().ended
    assert set(world.cluster.asked) <= asked
    group[1].die()
    until(lambda: world.hub.status().ended)
    assert world.hub.status().error is None
    assert len(world.events(StopRequested)) == 1
    assert world.events(WorkerLost) == []


def test_a_superseded_runs_bodies_end_without_saving_and_nothing_more_is_written(make: Make) -> None:
    world = make("a b", (1, 2))
    group = world.group(2)
    world.train(group)
    world.hub.flush()
    before = world.run.metrics.read_bytes()
    world.hub.superseded("process 7 on there")
    world.train(group)
    until(lambda: all(body.ended for body in group))
    assert [body.said("leave")[0]["orderly"] for body in group] == [False, False]
    until(lambda: world.hub.status().ended)
    world.hub.flush()
    assert world.run.metrics.read_bytes() == before


def test_an_error_for_a_person_sends_every_body_away(make: Make) -> None:
    world = make("a b", (1, 2))
    group = world.group(2)
    world.hub.fail(group[0].generation, DataError("shard x is truncated", hint="restore it"))
    until(lambda: world.hub.status().ended)
    assert [body.said("leave")[0]["orderly"] for body in group] == [False, False]
    assert str(world.hub.status().error) == "shard x is truncated"


@pytest.mark.parametrize("where", ["turn", "message"])
def test_a_mistake_of_the_hubs_own_ends_the_run_in_words(
    make: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    world = make("a b", (1, 2))
    group = world.group(2)
    if where == "turn":
        monkeypatch.setattr(world.cluster, "draining", lambda: dict[str, None]()["held"])
    else:
        group[0].link.send({"kind": "enlist"})
    assert "the hub of the run failed: KeyError: 'held'" in str(until(lambda: world.hub.status().error))
    until(lambda: all(body.ended for body in group))
    assert world.hub.status().ended


def test_a_clock_that_differs_and_a_single_node_are_told_once(make: Make) -> None:
    world = make("", (2, 2))
    world.cluster.clock = lambda: time.time() + 60
    world.cluster.add("a", "a")
    world.group(2)
    until(lambda: len(world.events(Warned)) == 2)
    clock, node = (event.message for event in world.events(Warned))
    assert "the clock of a is 60 s ahead of the driver's" in clock
    assert "all 2 workers are on one node, a:" in node


# --- what is late, lacking or slow ---------------------------------------------------------------------------------


def test_too_few_bodies_and_no_room_are_reported_once(make: Make) -> None:
    world = make("a", (3, 4))
    until(lambda: len(world.cluster.bodies) == 1)
    world.pass_time(WAITING_SECONDS - 1)
    assert world.events(Waiting) == []
    world.pass_time(2)
    world.pass_time(100)
    (waiting,) = world.events(Waiting)
    assert (waiting.fits, waiting.needs_workers, waiting.per_worker) == (1, 3, {"CPU": 1.0})
    assert not world.hub.request_stop(), "nobody is there to hear it"


def test_bodies_that_have_a_place_and_start_slowly_are_not_taken_for_lacking(make: Make) -> None:
    world = make("a", (3, 4))
    until(lambda: len(world.cluster.bodies) == 1)
    world.cluster.places = [2, 3]
    world.turns()
    world.pass_time(WAITING_SECONDS + 1)
    assert world.events(Waiting) == []


def test_a_body_that_was_let_go_and_stays_is_told_again_and_then_ended(make: Make) -> None:
    world = make("a b", (1, 2))
    group = world.group(2)
    world.train(group)
    late = group[1]
    late.deaf = True
    world.cluster.may = Share(1, shrink=True)
    world.group(1)
    until(lambda: late.said("leave"))
    late.enlist("regroup", left=late.generation)
    until(lambda: len(late.said("leave")) == 2)
    world.pass_time(LEAVE_SECONDS - 1)
    assert world.cluster.killed == []
    world.pass_time(2)
    until(lambda: world.cluster.killed == [late.number])


def test_what_comes_from_an_older_generation_changes_nothing(make: Make) -> None:
    world = make("a b c", (1, 3))
    group = world.group(3)
    world.train(group)
    old = group[0].generation
    group[2].die()
    after = world.group(2)
    world.train(after)
    after[0].enlist("error", "ValueError: of long ago", left=old)
    world.hub.stopped(old, Reason.STOP, 1)
    world.hub.fail(old, DataError("of long ago"))
    world.turns()
    assert not world.hub.over
    assert [len(body.said("cut")) for body in after] == [1, 1]
    assert len(world.events(WorkerLost)) == 1
    assert {body.generation for body in after} == {old + 1}


@pytest.mark.parametrize("slow", ["log", "cluster"])
def test_a_loss_is_dealt_with_while_storage_or_the_cluster_does_not_answer(
    make: Make, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    world = make("a b", (1, 2))
    group = world.group(2)
    world.train(group)
    answer, asked = threading.Event(), threading.Event()

    def wait(*_: Any) -> Any:
        asked.set()
        answer.wait(10)
        return {}

    if slow == "log":
        monkeypatch.setattr(RunLog, "event", wait)
        world.hub.record(StopRequested())
    else:
        monkeypatch.setattr(world.cluster, "draining", wait)
    assert asked.wait(5)
    group[1].die()
    world.train(world.group(1))
    assert len(world.events(WorkerLost)) == 1
    answer.set()
