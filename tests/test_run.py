"""What surrounds the steps: schedules, plans, the run log, sizes, the driver's checks."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from raylm.config.job import Job
from raylm.config.optim import OptimSettings
from raylm.errors import CheckpointError, ClusterError, ConfigError, DataError, StorageError, TrainingError
from raylm.run.events import BadLoss, Event, Failed
from raylm.run.folder import RunFolder
from raylm.run.log import read_events
from raylm.storage import StoragePath
from raylm.stream.lanes import lanes_of
from raylm.testing.datasets import job_settings, make_data
from raylm.train.accumulation import micro_batches_per_rank
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


# --- sizes --------------------------------------------------------------------------------------------------------


def test_slots_count_whole_workers_and_forgive_rounding() -> None:
    from raylm.runtime.nodes import slots

    assert slots({"CPU": 7.9999999, "GPU": 4}, {"CPU": 2, "GPU": 1}) == 4
    assert slots({"CPU": 8}, {"CPU": 2, "GPU": 1}) == 0
    assert slots({"CPU": 1}, {"CPU": 0}) == 1


def test_a_node_answers_until_its_raylet_is_gone() -> None:
    """Ray calls a killed node alive for a while, and a group placed on it waits for 20 s."""
    from raylm.runtime.nodes import answers

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
    assert not (tmp_path / "runs").exists()
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
    from raylm.runtime.ports import free_port
    from raylm.train.launch import train

    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1"):
        train(with_(job, cluster__address=f"127.0.0.1:{free_port()}"))
    assert time.monotonic() - began < 30


def events(folder: Path) -> list[Event]:
    return read_events(RunFolder(StoragePath(str(folder))))


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
    assert isinstance(events(tmp_path / "runs" / "run")[-1], Failed)
    again = Job.model_validate({**exploding.model_dump(mode="json"), "name": "skipping"})
    with pytest.raises(TrainingError, match="bad steps in a row: 3"):
        finished_run(with_(again, train__bad_loss="skip", train__max_skips=2))
    assert sum(isinstance(event, BadLoss) for event in events(tmp_path / "runs" / "skipping")) >= 2
