"""What surrounds the steps: schedules, plans, the run log, the coordinator's decisions, sizes, the driver's checks."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from raylm.config.job import Job
from raylm.config.optim import OptimSettings
from raylm.config.workers import WorkerSettings
from raylm.errors import CheckpointError, ConfigError, DataError, StorageError, TrainingError
from raylm.run.log import RunLog, read_lines
from raylm.storage import StoragePath
from raylm.testing.scenarios import job_settings, make_data
from raylm.train.accumulation import lanes_of, micro_batches_per_rank
from raylm.train.coordinator import GROW, NOTICE, STOP, Coordinator
from raylm.train.schedule import learning_rate


def rates(total: int, **settings: Any) -> list[float]:
    optim = OptimSettings(lr=1.0, **settings)
    return [learning_rate(optim, step=step, total_steps=total) for step in range(total)]


def test_cosine_warms_up_to_the_peak_and_ends_at_the_floor() -> None:
    found = rates(101, schedule="cosine", warmup_steps=10, min_lr_ratio=0.1)
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert found[10] == 1.0
    assert found[-1] == pytest.approx(0.1)
    assert found[55] == pytest.approx(0.55)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_linear_constant_and_wsd() -> None:
    assert rates(11, schedule="linear", min_lr_ratio=0.0) == pytest.approx([1 - step / 10 for step in range(11)])
    assert rates(5, schedule="constant") == [1.0] * 5
    stable = rates(100, schedule="wsd", warmup_steps=5, decay_steps=20, min_lr_ratio=0.0)
    assert stable[5:81] == [1.0] * 76
    assert stable[-1] == 0.0
    assert stable[80:] == sorted(stable[80:], reverse=True)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_every_schedule_stays_within_its_bounds_for_any_length(kind: Any) -> None:
    for total in (1, 2, 3, 10):
        for warmup in (0, 1, 5, 20):
            assert all(0 < rate <= 1 for rate in rates(total, schedule=kind, warmup_steps=warmup))


def test_every_lane_has_one_owner_at_any_size() -> None:
    for lanes in range(1, 20):
        for size in range(1, lanes + 1):
            owned = [lanes_of(rank, world_size=size, lanes=lanes) for rank in range(size)]
            assert sorted(lane for one in owned for lane in one) == list(range(lanes))
            assert max(len(one) for one in owned) == micro_batches_per_rank(lanes, size)


def test_more_workers_than_lanes_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="workers=5 exceeds the 4 micro-batches"):
        micro_batches_per_rank(4, 5)


# --- the run log ------------------------------------------------------------------------------------------------


def test_a_replayed_step_stands_once_with_its_last_value(tmp_path: Path) -> None:
    log = RunLog(StoragePath(str(tmp_path)), audit=True)
    for step in range(1, 6):
        log.metric({"step": step, "loss": 1.0})
        log.audit(step, [(0, step, 0)], attempt=1)
    log.rewind(3)
    log.metric({"step": 4, "loss": 2.0})
    log.audit(4, [(0, 4, 0)], attempt=2)
    log.flush()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    audit = [json.loads(line) for line in (tmp_path / "audit" / "audit.jsonl").read_text().splitlines()]
    assert [(line["step"], line["attempt"]) for line in audit] == [(1, 1), (2, 1), (3, 1), (4, 2)]


def test_a_line_cut_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    log = RunLog(StoragePath(str(tmp_path)))
    log.metric({"step": 1, "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 2, "lo')
    again = RunLog(StoragePath(str(tmp_path)))
    again.metric({"step": 2, "loss": 0.5})
    assert [line["step"] for line in read_lines(StoragePath(str(tmp_path / "metrics.jsonl")))] == [1, 2]


def test_on_an_object_store_a_flush_makes_the_lines_readable() -> None:
    place = StoragePath("memory://runlog/run")
    log = RunLog(place)
    log.metric({"step": 1, "loss": 1.0})
    log.event("started", step=0)
    assert not (place / "metrics.jsonl").exists()
    log.close()
    assert [line["step"] for line in read_lines(place / "metrics.jsonl")] == [1]
    assert [line["event"] for line in read_lines(place / "events.jsonl")] == ["started"]
    assert (place / "tensorboard").list()


# --- the coordinator --------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def coordinator(tmp_path: Path, **settings: Any) -> Coordinator:
    return Coordinator(StoragePath(str(tmp_path)), WorkerSettings(min=1, max=4, **settings), clock=Clock())


def begun(made: Coordinator, size: int) -> int:
    attempt = made.begin(size)
    for rank in range(size):
        made.sit(attempt, rank, f"node-{rank}", "host:1" if rank == 0 else None)
    return attempt


def kinds(tmp_path: Path) -> list[str]:
    return [line["event"] for line in read_lines(StoragePath(str(tmp_path / "events.jsonl")))]


def test_a_loss_is_followed_by_a_resize_and_a_resume_that_counts_what_is_replayed(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    first = begun(made, 3)
    made.started(first, step=0, checkpoint=None, phases={})
    for step in range(1, 9):
        made.metric(first, {"step": step, "loss": 1.0})
    made.event(first, "checkpoint_committed", {"step": 5})
    assert made.group_ended({2: "lost: node died", 0: "error: connection closed"})
    second = begun(made, 2)
    made.started(second, step=5, checkpoint="step-5", phases={})
    assert kinds(tmp_path) == ["started", "checkpoint_committed", "worker_lost", "resized", "resumed"]
    lost, _, resumed = made._log.events[-3:]
    assert (lost["ranks"], lost["nodes"], lost["last_committed"]) == ([2], ["node-2"], 5)
    assert resumed["steps_lost"] == 3
    assert [line["step"] for line in read_lines(StoragePath(str(tmp_path / "metrics.jsonl")))] == [1, 2, 3, 4, 5]


def test_an_older_attempt_is_not_heard(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    old, new = begun(made, 2), begun(made, 2)
    made.metric(old, {"step": 99, "loss": 0.0})
    made.event(old, "checkpoint_committed", {"step": 99})
    made.fail(old, TrainingError("from the dead"))
    made.finish(old, 99, {})
    assert made.signal(old) == "stale"
    assert made.signal(new) is None
    assert made.step() == 0
    assert made.fatal() is None
    assert not made.finished()
    assert kinds(tmp_path) == []


def test_a_notice_for_a_node_of_the_group_asks_to_leave_and_costs_no_failure(tmp_path: Path) -> None:
    made = coordinator(tmp_path, max_failures=0)
    attempt = begun(made, 2)
    made.drained({"somewhere-else": 10.0})
    assert made.signal(attempt) is None
    made.drained({"node-1": 12.34})
    assert made.signal(attempt) == NOTICE
    made.left(attempt, NOTICE, 7)
    assert made.group_ended({0: "error: LeaveGroup", 1: "error: LeaveGroup"})
    assert kinds(tmp_path) == ["preemption_notice"]
    assert made._log.events[0]["ranks"] == [1]
    assert made._log.events[0]["grace_seconds"] == 12.3


def test_stopping_ends_the_run_and_growing_restarts_it(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    attempt = begun(made, 2)
    made.request_stop(GROW, room=1)
    made.request_stop(NOTICE)  # the first reason stands
    assert made.signal(attempt) == GROW
    made.left(attempt, GROW, 3)
    assert made.group_ended({0: "error: LeaveGroup"})
    attempt = begun(made, 3)
    made.request_stop(STOP)
    made.left(attempt, STOP, 5)
    assert not made.group_ended({0: "error: LeaveGroup"})


def test_a_stop_asked_for_while_no_group_can_hear_it_is_kept_for_the_next(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    assert not made.request_stop(STOP)
    attempt = begun(made, 2)
    assert made.signal(attempt) == STOP
    assert made.request_stop(STOP)
    assert kinds(tmp_path) == ["stop_asked"]


def test_a_stop_counts_for_more_than_growing(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    attempt = begun(made, 2)
    assert made.request_stop(GROW, room=1)
    assert made.request_stop(STOP)
    assert made.signal(attempt) == STOP
    made.group_ended({0: "lost: killed"})
    assert not made.request_stop(STOP), "between two groups nobody hears it"


def test_a_superseded_driver_writes_nothing_more_and_ends(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    attempt = begun(made, 1)
    made.metric(attempt, {"step": 1, "loss": 1.0})
    made.superseded("process 7 on there")
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    made.metric(attempt, {"step": 2, "loss": 1.0})
    made.event(attempt, "checkpoint_committed", {"step": 2})
    made.flush()
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before
    assert made.signal(attempt) == "stale"
    assert not made.group_ended({0: "error: LeaveGroup"})
    assert "another `raylm train` of this run has begun, process 7 on there" in str(made.fatal())


def test_failures_without_progress_end_the_run_with_their_cause(tmp_path: Path) -> None:
    made = coordinator(tmp_path, max_failures=2)
    for _ in range(2):
        begun(made, 2)
        assert made.group_ended({0: "error: RuntimeError: out of memory"})
    begun(made, 2)
    assert not made.group_ended({0: "error: RuntimeError: out of memory"})
    error = made.fatal()
    assert error is not None
    assert "3 failures in a row" in error.message
    assert "out of memory" in error.message
    assert "workers.max_failures" in str(error.hint)


def test_progress_between_failures_starts_the_count_again(tmp_path: Path) -> None:
    made = coordinator(tmp_path, max_failures=1)
    for step in range(1, 6):
        attempt = begun(made, 2)
        made.metric(attempt, {"step": step, "loss": 1.0})
        assert made.group_ended({0: "lost: gone"})


def test_an_error_no_restart_can_mend_ends_the_run(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    attempt = begun(made, 2)
    made.fail(attempt, DataError("shard x is truncated", hint="restore it"))
    assert not made.group_ended({0: "error: DataError: shard x is truncated", 1: "error: gloo"})
    assert str(made.fatal()) == "shard x is truncated"
    assert kinds(tmp_path) == ["failed"]


def test_the_feed_gives_each_line_once_and_forgets_the_oldest(tmp_path: Path) -> None:
    made = coordinator(tmp_path)
    attempt = begun(made, 1)
    position = 0
    seen: list[int] = []
    for step in range(1, 8):
        made.metric(attempt, {"step": step, "loss": 1.0})
        if step % 3 == 0:
            position, news = made.feed(position)
            seen += [line["step"] for _, line in news]
    position, news = made.feed(position)
    assert seen + [line["step"] for _, line in news] == [1, 2, 3, 4, 5, 6, 7]
    assert made.feed(position) == (position, [])
    for step in range(8, 5000):
        made.event(attempt, "evaluated", {"step": step})
    _, news = made.feed(position)
    assert len(news) == 4096
    assert news[-1][1]["step"] == 4999


# --- sizes --------------------------------------------------------------------------------------------------------


def test_slots_count_whole_workers_and_forgive_rounding() -> None:
    from raylm.train.launch.policies import slots

    assert slots({"CPU": 7.9999999, "GPU": 4}, {"CPU": 2, "GPU": 1}) == 4
    assert slots({"CPU": 8}, {"CPU": 2, "GPU": 1}) == 0
    assert slots({"CPU": 1}, {"CPU": 0}) == 1


def test_a_node_answers_until_its_raylet_is_gone() -> None:
    """Ray calls a killed node alive for a while, and a group placed on it waits for 20 s."""
    from raylm.train.launch.policies import answers

    with socket.create_server(("127.0.0.1", 0)) as raylet:
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": raylet.getsockname()[1]}
        assert answers(node)
    assert not answers(node)


# --- the driver's checks ------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Job:
    data = make_data(tmp_path / "data", rows=48)
    return Job.model_validate(job_settings(tmp_path / "runs", data, name="run", steps=4))


def check(job: Job) -> None:
    from raylm.train.launch import preflight

    preflight(job, StoragePath(job.run_url))


def with_(job: Job, **changes: Any) -> Job:
    values = job.model_dump(mode="json")
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        values[section][leaf] = value
    return Job.model_validate(values)


def test_what_cannot_work_is_refused_before_anything_starts(job: Job, tmp_path: Path) -> None:
    check(job)
    assert not (tmp_path / "runs" / "run" / "checkpoints").exists()
    with pytest.raises(DataError, match="nowhere"):
        check(with_(job, data__path=str(tmp_path / "nowhere")))
    (tmp_path / "file").write_text("")
    blocked = Job.model_validate({**job.model_dump(mode="json"), "storage": str(tmp_path / "file")})
    with pytest.raises(StorageError, match="file"):
        check(blocked)
    endless = {"model_type": "llama", "hidden_size": 131072, "intermediate_size": 524288, "num_hidden_layers": 200}
    with pytest.raises(StorageError, match=r"space|free"):
        check(with_(job, model__preset=None, model__config=endless))


def test_a_cluster_that_is_not_there_is_said_at_once(job: Job) -> None:
    from raylm.train.context import free_port
    from raylm.train.launch import train

    began = time.monotonic()
    with pytest.raises(TrainingError, match=r"no Ray cluster answers at 127\.0\.0\.1"):
        train(with_(job, cluster__address=f"127.0.0.1:{free_port()}"))
    assert time.monotonic() - began < 30


def finished_run(job: Job) -> None:
    from raylm.train.without_ray import alone

    alone(job)


def test_a_run_folder_is_resumed_by_its_own_job_only(job: Job, tmp_path: Path) -> None:
    from raylm.train.launch import preflight

    finished_run(job)
    done = preflight(job, StoragePath(job.run_url))
    assert done is not None
    assert done.step == 4
    assert preflight(with_(job, train__steps=6), StoragePath(job.run_url)) is None
    with pytest.raises(ConfigError, match="another job"):
        check(with_(job, train__seed=99))
    before = sorted(path.name for path in (tmp_path / "runs" / "run").rglob("*"))
    make_data(tmp_path / "other", rows=48, seed=5)
    with pytest.raises(CheckpointError, match="the data changed since"):
        check(with_(job, data__path=str(tmp_path / "other")))
    assert sorted(path.name for path in (tmp_path / "runs" / "run").rglob("*")) == before
    assert (
        preflight(
            with_(job, data__path=str(tmp_path / "other"), data__allow_changed=True, train__steps=6),
            StoragePath(job.run_url),
        )
        is None
    )


def test_a_bad_loss_stops_the_run_or_is_skipped_and_recorded(job: Job, tmp_path: Path) -> None:
    exploding = with_(job, optim__lr=1e18, optim__warmup_steps=0, optim__max_grad_norm=0.0, train__steps=8)
    with pytest.raises(TrainingError, match=r"step .* gave loss"):
        finished_run(exploding)
    events = read_lines(StoragePath(str(tmp_path / "runs" / "run" / "events.jsonl")))
    assert events[-1]["event"] == "failed"
    again = Job.model_validate({**exploding.model_dump(mode="json"), "name": "skipping"})
    with pytest.raises(TrainingError, match="th bad step in a row"):
        finished_run(with_(again, train__bad_loss="skip", train__max_skips=2))
    events = read_lines(StoragePath(str(tmp_path / "runs" / "skipping" / "events.jsonl")))
    assert [event["event"] for event in events].count("bad_loss") >= 2
