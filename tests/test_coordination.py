"""The contract between workers, driver and coordinator, and what the coordinator records of a run."""

from __future__ import annotations

import inspect
import math
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raylm.coordination.contract import (
    Control,
    Coordination,
    Generation,
    Reason,
    SilentCoordination,
    actor_client,
    calls,
)
from raylm.coordination.coordinator import Coordinator
from raylm.coordination.feed import FEED_RECORDS
from raylm.errors import DataError, StorageError, TrainingError
from raylm.run.events import CheckpointCommitted, Evaluated, Event
from raylm.run.folder import RunFolder
from raylm.run.lines import read_lines
from raylm.run.log import RunLog
from raylm.run.metrics import StepMetrics
from raylm.storage import StoragePath


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def coordinator(tmp_path: Path, clock: Clock | None = None, **settings: Any) -> Coordinator:
    return Coordinator(RunFolder(StoragePath(str(tmp_path))), clock=clock or Clock(), **settings)


def metrics(step: int) -> StepMetrics:
    return StepMetrics(step=step, loss=1.0)


def events(tmp_path: Path) -> list[dict[str, Any]]:
    return read_lines(StoragePath(str(tmp_path / "events.jsonl")))


def kinds(tmp_path: Path) -> list[str]:
    return [line["event"] for line in events(tmp_path)]


# --- what is recorded ---------------------------------------------------------------------------------------------


def test_steps_that_are_trained_again_are_counted_and_forgotten(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    first = made.begin(3)
    made.started(first, step=0, checkpoint=None, phases={})
    for step in range(1, 9):
        made.report_metric(first, metrics(step))
    made.report_event(first, CheckpointCommitted(step=5))
    made.lost(failure=True)
    second = made.begin(2)
    made.started(second, step=5, checkpoint="step-5", phases={})
    assert kinds(tmp_path) == ["started", "checkpoint_committed", "resized", "resumed"]
    resized, resumed = events(tmp_path)[-2:]
    assert (resized["workers_before"], resized["workers"], resized["step"]) == (3, 2, 8)
    assert resumed["steps_lost"] == 3
    assert [line["step"] for line in read_lines(StoragePath(str(tmp_path / "metrics.jsonl")))] == [1, 2, 3, 4, 5]
    assert made.committed == 5


def test_a_generation_that_goes_on_in_memory_has_resumed_and_lost_nothing(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    first = made.begin(2)
    made.started(first, step=0, checkpoint=None, phases={})
    made.report_metric(first, metrics(1))
    made.lost(failure=True)
    made.started(made.begin(1), step=1, checkpoint=None, phases={"state": 0.1})
    resumed = events(tmp_path)[-1]
    assert (resumed["event"], resumed["steps_lost"], "checkpoint" in resumed) == ("resumed", 0, False)


def test_a_start_says_where_its_seconds_went(tmp_path: Path) -> None:
    clock = Clock()
    made = coordinator(tmp_path, clock)
    clock.now = 2.0
    first = made.begin(1)
    clock.now = 3.0
    made.started(first, step=0, checkpoint=None, phases={"build": 1.0})
    for clock.now in (3.0, 4.0, 6.0):
        made.report_metric(first, metrics(int(clock.now)))
    clock.now = 10.0
    made.lost(failure=True)
    clock.now = 11.0
    made.lost(failure=True)
    second = made.begin(1, phases={"gather": 1.0})
    clock.now = 14.0
    made.started(second, step=0, checkpoint="step-0", phases={"build": 3.0})
    started, resumed = events(tmp_path)
    assert (started["seconds"], started["phases"]) == (3.0, {"gather": 2.0, "build": 1.0})
    assert "since_loss_seconds" not in started
    assert (resumed["seconds"], resumed["since_loss_seconds"]) == (4.0, 4.0)
    assert resumed["phases"] == {"gather": 1.0, "build": 3.0}
    assert (made.history().failures, made.history().training_seconds) == (2, 3.0)


def test_an_older_generation_is_not_heard(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    old, new = made.begin(2), made.begin(2)
    made.report_metric(old, metrics(99))
    made.report_event(old, CheckpointCommitted(step=99))
    made.report_audit(old, 99, [(0, 0, 0)])
    made.started(old, step=99, checkpoint=None, phases={})
    made.stopped(old, Reason.STOP, 99)
    made.fail(old, TrainingError("from the dead"))
    made.finish(old, 99, tokens=0, sequences=0)
    assert made.fence(old) == 0
    assert made.status().step == 0
    assert made.status().error is None
    assert not made.status().finished
    assert not made.over
    assert kinds(tmp_path) == []
    made.stopped(new, Reason.STOP, 1)
    assert made.over


def test_who_has_left_may_still_say_that_it_committed_a_step_that_stands(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    old = made.begin(3)
    made.report_metric(old, metrics(1))
    new = made.begin(2)
    made.report_metric(new, metrics(2))
    made.report_event(old, CheckpointCommitted(step=1))
    made.report_event(old, CheckpointCommitted(step=3))  # the run has not come so far, or not again
    assert made.committed == 1
    made.flush()
    assert kinds(tmp_path) == ["resized", "checkpoint_committed"]


def test_a_fence_is_claimed_at_the_start_and_when_a_further_generation_first_saves(tmp_path: Path) -> None:
    claims = iter(range(7, 100))
    made = coordinator(tmp_path, claim=lambda: next(claims))
    assert made.first_generation == 7, "no driver before had a generation of that number"
    first = made.begin(2)
    assert (first, made.fence(first), made.fence(first)) == (7, 7, 7)
    second = made.begin(1)
    third = made.begin(2)
    assert (third, made.fence(third), made.fence(third)) == (9, 8, 8), "the second never saved"
    assert made.fence(second) == 0


def test_the_next_drivers_generations_have_numbers_of_their_own(tmp_path: Path) -> None:
    claims = iter(range(1, 100))
    made = coordinator(tmp_path, claim=lambda: next(claims))
    for step in (1, 2, 3):
        made.report_metric(made.begin(2), metrics(step))
    made.close()
    assert coordinator(tmp_path, claim=lambda: next(claims)).begin(2) == 4


def test_the_newer_of_two_generations_that_claim_at_once_holds_the_newer_fence(tmp_path: Path) -> None:
    claims, asked, answer = iter(range(1, 9)), threading.Event(), threading.Event()

    def claim() -> int:
        number = next(claims)
        if number == 2:
            asked.set()
            answer.wait(10)
        return number

    made = coordinator(tmp_path, claim=claim)
    made.fence(made.begin(1))
    with ThreadPoolExecutor(2) as pool:
        older = pool.submit(made.fence, made.begin(2))
        assert asked.wait(10)
        newer = pool.submit(made.fence, made.begin(3))
        answer.set()
    assert (older.result(), newer.result()) == (2, 3)
    assert made.fence(Generation(3)) == 3


def test_what_storage_does_not_take_is_written_later_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = coordinator(tmp_path)
    generation = made.begin(1)
    with monkeypatch.context() as full:
        full.setattr(RunLog, "metric", lambda *_: (_ for _ in ()).throw(StorageError("the disk is full")))
        with pytest.raises(StorageError):
            made.report_metric(generation, metrics(1))
        with pytest.raises(StorageError):
            made.report_event(generation, Evaluated(step=1))
    made.report_metric(generation, metrics(2))
    assert [line["step"] for line in read_lines(StoragePath(str(tmp_path / "metrics.jsonl")))] == [1, 2]
    assert kinds(tmp_path) == ["evaluated"]


def test_a_superseded_driver_writes_nothing_more_and_ends(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    generation = made.begin(1)
    made.report_metric(generation, metrics(1))
    made.superseded("process 7 on there")
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    made.report_metric(generation, metrics(2))
    made.report_event(generation, CheckpointCommitted(step=2))
    made.flush()
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before
    assert made.over
    assert "another `raylm train` of this run has begun, process 7 on there" in str(made.status().error)


def test_an_error_that_only_a_person_can_mend_ends_the_run(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    generation = made.begin(2)
    made.fail(generation, DataError("shard x is truncated", hint="restore it"))
    made.fail(None, TrainingError("of a body that has no group yet"))
    assert str(made.status().error) == "shard x is truncated"
    assert kinds(tmp_path) == ["failed"]
    assert made.status().ended


def test_the_feed_gives_each_record_once_and_forgets_the_oldest(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    generation = made.begin(1)
    position = 0
    seen: list[int] = []
    for step in range(1, 8):
        made.report_metric(generation, metrics(step))
        if step % 3 == 0:
            position, news = made.feed(position)
            seen += [record.step for record in news]
    position, news = made.feed(position)
    assert seen + [record.step for record in news] == [1, 2, 3, 4, 5, 6, 7]
    assert made.feed(position) == (position, [])
    for step in range(8, 5000):
        made.report_event(generation, Evaluated(step=step))
    _, news = made.feed(position)
    assert len(news) == FEED_RECORDS
    assert news[-1].step == 4999


def test_a_record_in_the_feed_is_the_line_in_the_log(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    generation = made.begin(2)
    made.report_metric(generation, StepMetrics(step=3, loss=2.5, lr=0.1, grad_norm=1.0, tokens_per_second=9.0))
    made.report_event(generation, Evaluated(step=3, held_out_loss=2.0))
    _, (step, event) = made.feed(0)
    assert [step.to_line()] == read_lines(StoragePath(str(tmp_path / "metrics.jsonl")))
    assert [event.to_line()] == events(tmp_path)
    assert isinstance(event, Event)
    assert (event.workers, math.isnan(event.at)) == (2, False)


# --- the contract -------------------------------------------------------------------------------------------------


def test_every_implementation_offers_every_call_with_the_same_arguments() -> None:
    def arguments(owner: type, name: str) -> list[str]:
        # Ray adds a parameter of its own to the methods of a class that it makes an actor of, its bases' among them.
        parameters = inspect.signature(getattr(owner, name)).parameters
        return [parameter for parameter in parameters if not parameter.startswith("_ray_")]

    for protocol, implementations in ((Coordination, (Coordinator, SilentCoordination)), (Control, (Coordinator,))):
        names = [name for name in vars(protocol) if not name.startswith("_")]
        assert names
        for name in names:
            for implementation in implementations:
                assert arguments(implementation, name) == arguments(protocol, name), (implementation, name)


def test_what_writes_the_record_is_kept_in_order_and_reports_are_not_waited_for() -> None:
    marked = {call.name: (call.in_order, call.answered) for call in calls()}
    assert {name for name, (in_order, _) in marked.items() if in_order} == {
        *("report_metric", "report_audit", "report_event", "flush"),
        *("started", "stopped", "fail", "finish", "close"),
    }
    assert {name for name, (_, answered) in marked.items() if not answered} == {
        *("report_metric", "report_audit", "report_event"),
    }


class FakeActor:
    """Remembers what was called, and answers or raises."""

    def __init__(self, answer: Any = None) -> None:
        self.answer, self.called = answer, list[tuple[str, tuple[Any, ...], dict[str, Any]]]()

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any, **kwargs: Any) -> Any:
            self.called.append((name, args, kwargs))
            return self.answer

        return types.SimpleNamespace(remote=remote)


def test_the_actors_client_forwards_each_call_and_waits_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    waited: list[Any] = []
    monkeypatch.setattr(ray, "get", lambda reference: waited.append(reference) or reference)
    actor = FakeActor(7)
    client = actor_client(actor)
    assert client.fence(Generation(7)) == 7
    client.report_metric(Generation(7), metrics(1))
    client.started(Generation(7), step=1, checkpoint=None, phases={})
    assert [name for name, _, _ in actor.called] == ["fence", "report_metric", "started"]
    assert actor.called[2][1:] == ((7,), {"step": 1, "checkpoint": None, "phases": {}})
    assert len(waited) == 2, "a report is not waited for"


def test_the_actors_client_raises_an_error_for_people_as_it_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.exceptions import RayTaskError

    def get(cause: Exception) -> None:
        raise RayTaskError("flush", "traceback", cause)

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(DataError, match="the disk is full"):
        actor_client(FakeActor(DataError("the disk is full"))).flush()
    with pytest.raises(RayTaskError):
        actor_client(FakeActor(ValueError("ours"))).flush()


def test_the_actor_serves_the_record_by_one_thread_and_the_rest_by_others() -> None:
    from raylm.train.launch.actor import HubActor

    for call in calls():
        group = getattr(HubActor, call.name).__ray_concurrency_group__
        assert group == ("log" if call.in_order else "control"), call.name
        assert not hasattr(getattr(Coordinator, call.name), "__ray_concurrency_group__")


def test_the_contract_needs_neither_ray_nor_torch() -> None:
    import subprocess

    code = "import sys, raylm.coordination.hub; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
