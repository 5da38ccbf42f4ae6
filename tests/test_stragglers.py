"""Slow ranks: how long a rank itself takes, who is told, and who is replaced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_world import Clock, World, nodes, wishes

from raylm.coordination import hub
from raylm.coordination.stragglers import WINDOW_STEPS, RankTimes, Slow, Stragglers
from raylm.run.events import Straggler, parse_event
from raylm.run.metrics import StepMetrics
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Action, run_alone, run_elastic
from raylm.train.probe import SAMPLED, Probe


def times(size: int, clock: Clock) -> RankTimes:
    return RankTimes(size, patience_seconds=10.0, clock=clock)


def test_the_slowest_rank_makes_up_the_whole_step_and_the_others_their_part() -> None:
    clock = Clock()
    ranks = times(3, clock)
    for _ in range(WINDOW_STEPS):
        ranks.add([0.0, 0.1, 0.0], [0.02, 0.01, 0.01], 0.5)
    clock.now += 2.0
    assert ranks.newest() == (0.4, 0.3, 0.2)


def test_times_stand_in_one_line_of_many() -> None:
    clock = Clock()
    ranks = times(2, clock)
    found = []
    for _ in range(100):
        ranks.add([0.0, 0.0], [0.1, 0.1], 0.5)
        clock.now += 0.5
        found.append(ranks.newest())
    assert sum(one is not None for one in found) == 20, "every 2.5 s, which are 5 steps"
    assert set(found) == {None, (0.5, 0.5)}


@pytest.mark.parametrize(("size", "computing"), [(1, [1.0]), (2, [1.0, 0.0])], ids=["alone", "not measured"])
def test_nothing_is_said_of_a_rank_alone_or_of_what_was_not_measured(size: int, computing: list[float]) -> None:
    clock = Clock()
    ranks = times(size, clock)
    for _ in range(WINDOW_STEPS):
        ranks.add([0.0] * size, computing, 0.5)
    clock.now += 60
    assert ranks.newest() is None


def heard(judge: Stragglers, clock: Clock, seconds: float, rows: list[dict[int, float]]) -> list[tuple[float, Slow]]:
    found = []
    for row in rows:
        found += [(clock.now - 1000, slow) for slow in judge.heard(row)]
        clock.now += seconds
    return found


def test_who_is_slow_for_long_enough_is_told_once() -> None:
    clock = Clock()
    judge = Stragglers(1.5, 60, clock)
    found = heard(judge, clock, 10, [{1: 0.5, 2: 0.5, 3: 1.0}] * 20)
    assert found == [(60.0, Slow(3, 1.0, 0.5, 60.0))]


def test_a_break_begins_the_wait_again_and_a_second_spell_is_told_again() -> None:
    clock = Clock()
    judge = Stragglers(1.5, 60, clock)
    slow, fast = {1: 0.5, 2: 0.5, 3: 1.0}, {1: 0.5, 2: 0.5, 3: 0.6}
    assert not heard(judge, clock, 10, [*[slow] * 5, fast, *[slow] * 5])
    assert [at for at, _ in heard(judge, clock, 10, [fast, *[slow] * 7, fast, *[slow] * 7])] == [180.0, 260.0]


def test_noise_below_the_ratio_and_steps_that_are_slow_for_all_tell_of_nobody() -> None:
    clock = Clock()
    judge = Stragglers(1.5, 20, clock)
    assert not heard(judge, clock, 10, [{1: 0.5, 2: 0.7}, {1: 0.7, 2: 0.5}] * 10)
    assert not heard(judge, clock, 10, [{1: 5.0, 2: 5.0}] * 10)
    assert not heard(judge, clock, 10, [{1: 5.0}] * 10)


def test_two_slow_ranks_of_five_are_both_told() -> None:
    clock = Clock()
    found = heard(Stragglers(1.5, 20, clock), clock, 10, [{1: 1.0, 2: 0.4, 3: 0.4, 4: 0.4, 5: 0.9}] * 4)
    assert [slow.body for _, slow in found] == [1, 5]


# --- the hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(hub, "TURN_SECONDS", 0.01)
    made: list[World] = []

    def world(names: str, size: tuple[int, int], **workers: Any) -> World:
        made.append(World(tmp_path, names, size, straggler_seconds=60, **workers))
        return made[-1]

    yield world
    for each in made:
        each.hub.close()


def slow_for(world: World, group: list[Any], rank: int, seconds: float) -> None:
    by_rank = [1.0 if other == rank else 0.4 for other in range(len(group))]
    world.train(group, seconds=1.0, by_rank=by_rank)
    world.pass_time(seconds)
    world.train(group, seconds=1.0, by_rank=by_rank)


def test_a_straggler_is_told_with_its_node_and_stays(worlds: Any) -> None:
    world = worlds("a b c", (1, 3))
    group = world.group(3)
    slow_for(world, group, 1, 60.0)
    (event,) = world.events(Straggler)
    assert (event.rank, event.node, event.step_seconds, event.others_seconds, event.replaced) == (
        1,
        nodes(group)[1],
        1.0,
        0.4,
        False,
    )
    assert f"rank 1 on {nodes(group)[1]}" in event.describe()
    assert "all wait for it" in event.describe()
    world.pass_time(60.0)
    assert wishes(group) == [[], [], []]


def test_a_straggler_is_replaced_by_a_body_of_another_node(worlds: Any) -> None:
    world = worlds("a b c", (1, 3), replace_stragglers=True)
    group = world.group(3)
    slow_for(world, group, 1, 60.0)
    (event,) = world.events(Straggler)
    assert event.replaced
    assert "it is replaced" in event.describe()
    slow = nodes(group)[1]
    world.cluster.add(slow, "d")  # as if its place were free at once
    after = world.group(3)
    assert {*nodes(group), "d"} - {slow} == set(nodes(after))
    assert after[0].step == group[0].step, "nothing is lost"


def test_a_straggler_without_another_node_leaves_after_a_while(worlds: Any) -> None:
    world = worlds("a b c", (1, 3), replace_stragglers=True)
    group = world.group(3)
    slow_for(world, group, 1, 60.0)
    world.pass_time(20.0)
    assert wishes(group) == [[], [], []]
    world.pass_time(20.0)
    assert nodes(group)[1] not in nodes(world.group(2))


def test_a_straggler_that_the_run_needs_stays(worlds: Any) -> None:
    world = worlds("a b c", (3, 3), replace_stragglers=True)
    group = world.group(3)
    slow_for(world, group, 1, 60.0)
    (event,) = world.events(Straggler)
    assert not event.replaced
    world.pass_time(60.0)
    assert wishes(group) == [[], [], []]


# --- what is measured ---------------------------------------------------------------------------------------------


def test_the_seconds_of_a_forward_pass_are_given_once() -> None:
    probe = Probe("cpu")
    with probe.forward():
        torch.ones(500, 500) @ torch.ones(500, 500)
    assert probe.seconds() > 0
    assert probe.seconds() == 0


def test_a_sample_of_modules_is_measured_between_the_hooks_that_gather_their_weights() -> None:
    order: list[str] = []
    layers = [torch.nn.Linear(4, 4) for _ in range(50)]
    model = torch.nn.Sequential(*layers)
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: order.append("gathered"))
        layer.register_forward_hook(lambda *_: order.append("let go"))
    probe = Probe("cpu")
    marks = probe._mark
    probe._mark = lambda: (order.append("mark"), marks())[1]  # type: ignore[method-assign]
    probe.sample(model.modules())
    with probe.forward():
        model(torch.ones(1, 4))
    sampled = order.count("mark") // 2
    assert SAMPLED <= sampled < 2 * SAMPLED
    text = " ".join(order)
    assert text.count("gathered mark mark let go") == sampled
    assert probe.seconds() > 0


def test_an_event_and_a_line_of_metrics_are_read_as_they_were_written() -> None:
    event = Slow(3, 1.25, 0.5, 61.0).event(2, "host", replaced=True)
    assert parse_event(event.to_line()) == event
    metrics = StepMetrics(step=3, loss=1.0, rank_seconds=(0.5, 0.25))
    assert list(StepMetrics.parse(metrics.to_line()).rank_seconds or ()) == [0.5, 0.25]


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.sweep)])
def test_a_worker_held_up_by_its_machine_is_told_and_replaced(tmp_path: Path, stage: int) -> None:
    data = make_data(tmp_path / "data", rows=480)
    settings = job_settings(tmp_path / "runs", data, name="run", steps=110, stage=stage, batch__sequences=12)
    settings["workers"] |= {"straggler_seconds": 4.0, "straggler_ratio": 1.4, "replace_stragglers": True}
    path = write_job(tmp_path, settings)
    outcome = run_elastic(path, [Action(20, "slow"), Action(30, "add")], slots=2)
    told = outcome.of("straggler")
    assert [event["replaced"] for event in told[:1]] == [True], outcome.acts
    alone = run_alone(write_job(tmp_path, {**settings, "name": "alone"}))
    assert outcome.audit_table() == alone.audit_table()
    assert max(abs(one - other) for one, other in zip(outcome.losses, alone.losses, strict=True)) < 1e-4
    assert not outcome.of("worker_lost")
    assert sum(start["steps_lost"] or 0 for start in outcome.of("resumed")) == 0
