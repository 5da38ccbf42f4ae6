"""Ray Train's thin workers stand beside the bodies, and whatever becomes of them costs no step."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raylm.config.load import load_job
from raylm.run.metrics import StepMetrics
from raylm.runtime.connect import LocalRay, connected
from raylm.testing.cluster import Cluster
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import read_outcome
from raylm.train.launch import start, thin_workers


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes of one worker each."""
    made = Cluster(2)
    yield made
    made.close()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"{what} did not happen within {seconds} s")
        time.sleep(0.1)


def placement_groups() -> list[str]:
    import ray

    return [group["name"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def test_thin_workers_and_their_controller_die_and_no_step_is_lost(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thin_workers, "SETTLED_SECONDS", 1.0)
    monkeypatch.setattr(thin_workers, "AGAIN_SECONDS", 1.0)
    data = make_data(tmp_path / "data", rows=240)
    settings = job_settings(tmp_path / "runs", data, name="thin", steps=2000, evaluate__every_steps=1000)
    settings["cluster"] = {"address": cluster.address}
    run = start(load_job(str(write_job(tmp_path, settings))))
    try:
        wait_for(lambda: len(cluster.processes("RayTrainWorker")) == 2, "a thin worker for each body")
        assert len(cluster.processes("BodyActor")) == 2
        for victim in ("RayTrainWorker", "TrainController"):
            before = {process.pid for process in cluster.processes("RayTrainWorker")}
            for process in cluster.processes(victim):
                process.kill()

            def again(before: set[int] = before) -> bool:
                now = {process.pid for process in cluster.processes("RayTrainWorker")}
                return len(now) == 2 and not now & before

            wait_for(again, f"new thin workers after the loss of {victim}")
        run.request_stop()
        wait_for(lambda: run.done, "the end of the run")
        outcome = read_outcome(Path(run.url))
        assert [line["step"] for line in outcome.metrics] == list(range(1, run.step + 1))
        assert len({line["workers"] for line in outcome.metrics}) == 1
        assert not [*outcome.of("worker_lost"), *outcome.of("resumed")], outcome.events
        assert any(isinstance(record, StepMetrics) for record in run.events())
        wait_for(lambda: not cluster.processes("RayTrain"), "the end of every thin worker", 20)
        with connected(cluster.address, LocalRay(1)):
            wait_for(lambda: not placement_groups(), "the end of every placement group", 20)
        # What cleans up after a controller that died does not end by itself where there is no dashboard.
        wait_for(lambda: len(cluster.processes("PlacementGroupCleaner")) <= 1, "the end of what cleans up", 20)
    finally:
        run.request_stop(at_once=True)


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, living, another = (
        tmp_path / f"raylm-ray-train-{name}" for name in (f"{ended.pid}-a", f"{os.getppid()}-b", "of-somebody")
    )
    for folder in (left, living, another):
        (folder / "inner").mkdir(parents=True)
    own = Path(thin_workers._own_storage())
    assert sorted(tmp_path.iterdir()) == sorted([own, living, another])
