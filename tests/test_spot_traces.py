"""The hub driven through published traces of spot machines: losing them ends no run, the program's own error does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_world import FakeBody, World, until

from benchmarks.goodput_traces import Trace, traces
from raylm.coordination import hub

NAMES = ("p3", "gcp-a100", "p2", "parcae-hh", "parcae-hl", "parcae-lh", "parcae-ll")
MOST = 32  # members, as a job of 32 machines that asks for no more
SETTLED_SECONDS = 20.0


def trace_named(name: str) -> Trace:
    folder = Path(os.environ.get("RAYLM_TEST_DATA", "../shared/data")) / "spot-traces"
    if not folder.is_dir():
        pytest.skip(f"no published traces in {folder}; RAYLM_TEST_DATA names the folder that holds spot-traces")
    return next(trace for trace in traces(folder) if trace.name == name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(hub, "TURN_SECONDS", 0.002)
    made = World(tmp_path, "", (1, MOST), max_failures=0, join_interval_seconds=0.0, silence_seconds=1e6)
    yield made
    made.hub.close()


def settled(world: World, live: set[str], steps: int) -> list[FakeBody]:
    """The newest generation, by rank, once it has as many members as nodes allow; none where no node is.

    It trains so many steps.
    """
    deadline = time.monotonic() + SETTLED_SECONDS
    started = 0
    while True:
        assert time.monotonic() < deadline, f"no group formed of {sorted(live)}"
        assert not world.hub.over, world.hub.status().error
        world.clock.now += 1.0
        time.sleep(0.003)
        bodies = list(world.cluster.bodies.values())
        for body in bodies:
            if body.node not in live and not body.ended:
                body.die()
        newest = max((body.generation for body in bodies), default=0)
        members = sorted(
            (one for one in bodies if newest and one.generation == newest), key=lambda one: one.place["rank"]
        )
        if not live and all(one.ended for one in members):
            return []
        if not members or len(members) < members[0].place["size"] or any(one.ended for one in members):
            continue
        if newest > started:
            started = newest
            world.train(members, steps=steps if len(members) == min(MOST, len(live)) else 1)  # one grows after a step
        if len(members) == min(MOST, len(live)):
            return members


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_no_change_of_a_published_trace_ends_a_run(world: World, name: str) -> None:
    trace = trace_named(name)
    live: set[str] = set()
    for number, change in enumerate(trace.changes):
        for node in change.removed:
            live.discard(node)
            if node in world.cluster.free:  # it may have been taken a moment ago
                world.cluster.free.remove(node)
        live |= set(change.added)
        world.cluster.add(*change.added)
        settled(world, live, steps=number % 3)  # of some generations no step is finished
    assert len([body for body in world.cluster.bodies.values() if body.node not in live]) >= 3
    assert not world.hub.over
    assert world.hub.status().error is None


def test_an_error_of_the_program_itself_ends_the_same_run(world: World) -> None:
    world.cluster.add("a", "b")
    members = settled(world, {"a", "b"}, steps=1)
    members[0].enlist("error", "ValueError: odd batch")
    assert "odd batch" in str(until(lambda: world.hub.status().error))
