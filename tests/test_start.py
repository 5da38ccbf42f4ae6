"""Runs that a program starts, follows and stops: from any thread, several at once, in a process left as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.config.job import Job
from raylm.config.load import load_job, with_overrides
from raylm.errors import ClusterError, Interrupted, TrainingError
from raylm.run.events import Event, Failed, Finished, Started
from raylm.run.metrics import StepMetrics
from raylm.testing.cluster import Cluster
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Outcome, environment, read_outcome
from raylm.train.launch import Run, start, train

# Where a run of two sizes differs from one worker in fp32: the order of a few sums.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("start") / "data", rows=480)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes of one worker each."""
    made = Cluster(3)
    yield made
    made.close()


def test_whoever_stops_a_run_is_told_how_to_stop_it_at_once_by_either_signal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stopped:
        done = True
        requests = 0

        def events(self) -> Iterator[Event]:
            yield from ()
            raise KeyboardInterrupt  # SIGTERM raises it too, on the command line

        def request_stop(self) -> None:
            self.requests += 1

        def result(self) -> str:
            return f"ended after {self.requests} request"

    monkeypatch.setattr("raylm.train.launch.run.start", lambda job: Stopped())
    assert str(train(Job())) == "ended after 1 request"
    assert caplog.messages == ["saving before stopping; send the signal again, or press Ctrl-C, to stop at once"]


def job_of(folder: Path, data: Path, cluster: Cluster, **changes: Any) -> Job:
    settings = job_settings(folder / "runs", data, **changes)
    settings["cluster"] = {"address": cluster.address}
    return load_job(str(write_job(folder, settings)))


def handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def test_a_run_is_followed_by_several_and_leaves_the_process_as_it_was(
    tmp_path: Path, data: Path, cluster: Cluster
) -> None:
    """Started from a thread that is not the main one."""
    job = job_of(tmp_path, data, cluster, name="one", steps=6)
    variables, before = dict(os.environ), handlers()
    made: list[Run] = []
    starter = threading.Thread(target=lambda: made.append(start(job)))
    starter.start()
    starter.join()
    (run,) = made
    assert dict(os.environ) == variables
    assert handlers() == before
    followed: list[list[StepMetrics | Event]] = [[], []]

    def follow(number: int) -> None:
        followed[number] += run.events()

    followers = [threading.Thread(target=follow, args=(number,)) for number in (0, 1)]
    for follower in followers:
        follower.start()
    with pytest.raises(TimeoutError, match="has not ended after"):
        run.result(timeout=0.01)
    result = run.result(timeout=300)
    for follower in followers:
        follower.join(10)
    assert (result.step, run.step, run.done) == (6, 6, True)
    assert followed[0] == followed[1]
    assert [record.step for record in followed[0] if isinstance(record, StepMetrics)] == list(range(1, 7))
    events = [record for record in followed[0] if isinstance(record, Event)]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert list(run.events()) == followed[0], "who comes late reads the same"
    assert dict(os.environ) == variables
    assert handlers() == before
    again = start(job)
    assert again.result().already_finished
    assert list(again.events()) == []


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)


def test_two_runs_share_three_workers_and_one_grows_into_the_place_of_the_other(
    tmp_path: Path, data: Path, cluster: Cluster
) -> None:
    """Both have the losses, and see the sequences, of the same runs alone."""
    both = {"evaluate__every_steps": 1000, "optim__schedule": "constant"}
    first = job_of(tmp_path, data, cluster, name="first", steps=400, train__seed=1, **both)
    second = job_of(tmp_path, data, cluster, name="second", steps=110, train__seed=2, **both)
    one, other = start(first), start(second)
    wait_for(lambda: one.step >= 3 and other.step >= 3, "three steps of each run")
    one.request_stop()
    with pytest.raises(Interrupted, match=r"stopped at step \d+, saved"):
        one.result(timeout=300)
    result = other.result(timeout=300)
    assert result.step == 110
    stopped, grown = (read_outcome(Path(run.url)) for run in (one, other))
    assert grown.sizes[-1] == 3, grown.events
    assert grown.sizes[0] < 3 or 3 not in stopped.sizes, "together they had no more than three"
    for outcome, job in ((stopped, first), (grown, second)):
        assert_as_alone(outcome, job, tmp_path)


def assert_as_alone(outcome: Outcome, job: Job, folder: Path) -> None:
    """The run's losses are those of one worker without a cluster, and so is what it trained on."""
    from raylm.train.without_ray import alone

    steps = outcome.metrics[-1]["step"]
    # A constant rate does not depend on where the run ends.
    alone(with_overrides(job, {"storage": str(folder / "alone"), "train.steps": steps}))
    reference = read_outcome(folder / "alone" / job.name)
    assert [line["step"] for line in outcome.metrics] == list(range(1, steps + 1))
    assert outcome.losses == pytest.approx(reference.losses, rel=TOLERANCE)
    assert outcome.audit_table() == reference.audit_table()


def test_a_run_that_is_stopped_twice_ends_at_once_and_its_workers_are_free(
    tmp_path: Path, data: Path, cluster: Cluster
) -> None:
    run = start(job_of(tmp_path, data, cluster, name="cut", steps=400, checkpoint__every_steps=1000))
    wait_for(lambda: run.step >= 2, "two steps")
    with pytest.raises(TrainingError, match="is being trained already, by this process"):
        start(job_of(tmp_path, data, cluster, name="cut", steps=400, checkpoint__every_steps=1000))
    with pytest.raises(ClusterError, match=r"and cannot use the one at 127\.0\.0\.1:1 as well"):
        start(with_overrides(job_of(tmp_path, data, cluster, name="far", steps=4), {"cluster.address": "127.0.0.1:1"}))
    run.request_stop(at_once=True)
    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped at once"):
        run.result(timeout=300)
    assert time.monotonic() - began < 30
    again = start(job_of(tmp_path, data, cluster, name="cut", steps=6, checkpoint__every_steps=1000))
    assert again.result(timeout=300).step == 6


def test_what_ends_a_run_is_raised_where_its_result_is_asked_for(tmp_path: Path, data: Path, cluster: Cluster) -> None:
    exploding = job_of(
        tmp_path, data, cluster, name="bad", steps=8, optim__lr=1e18, optim__warmup_steps=0, optim__max_grad_norm=0.0
    )
    run = start(exploding)
    for _ in range(2):
        with pytest.raises(TrainingError, match="loss"):
            run.result(timeout=300)
    failed = [record for record in run.events() if isinstance(record, Failed)]
    assert len(failed) == 1


def test_what_is_known_before_is_raised_by_start(tmp_path: Path, data: Path) -> None:
    settings = job_settings(tmp_path / "runs", data, name="none", steps=4)
    settings["cluster"] = {"address": "127.0.0.1:1"}
    job = load_job(str(write_job(tmp_path, settings)))
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        start(job)
    with pytest.raises(ClusterError):
        train(job)
    assert not list((tmp_path / "runs" / "none").glob("driver*")), "the run is free for another"


def test_a_program_trains_without_a_cluster_of_its_own(tmp_path: Path, data: Path) -> None:
    """As in a notebook: two runs, on the Ray that the first one started."""
    path = write_job(
        tmp_path, job_settings(tmp_path / "runs", data, name="notebook", steps=4, workers__max=1, workers__resources={})
    )
    code = f"""if True:
        import raylm
        job = raylm.load_job({str(path)!r})
        runs = [raylm.start(job), raylm.start(raylm.with_overrides(job, {{"name": "second"}}))]
        print([run.result().step for run in runs])
        import ray
        print(ray.is_initialized())
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.split("\n")[:2] == ["[4, 4]", "False"], done.stderr[-3000:]


def test_a_run_outlives_the_thread_that_started_it(tmp_path: Path, data: Path) -> None:
    """With a Ray of its own, whose processes Linux would end with the thread that forked them."""
    path = write_job(
        tmp_path, job_settings(tmp_path / "runs", data, name="thread", steps=12, workers__max=1, workers__resources={})
    )
    code = f"""if True:
        import threading, time
        import psutil
        import raylm
        job = raylm.load_job({str(path)!r})
        runs = []
        starter = threading.Thread(target=lambda: runs.append(raylm.start(job)))
        starter.start()
        starter.join()
        time.sleep(1)
        names = [child.name() for child in psutil.Process().children(recursive=True) if child.status() != "zombie"]
        print({{"gcs_server", "raylet"}} <= set(names))
        (run,) = runs
        print(len([record for record in run.events() if type(record).__name__ == "StepMetrics"]), run.result().step)
        print([thread.name for thread in threading.enumerate() if thread.name == "raylm-ray"])
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in environment().items() if name != "RAY_AUTH_MODE"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines() == ["True", "12 12", "[]"], done.stderr[-3000:]
    for warning in ("SIGTERM handler", "Token authentication is enabled"):
        assert warning not in done.stderr


def test_a_lost_cluster_is_one_error_with_a_hint(
    tmp_path: Path, data: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the head is killed: whoever asks the hub hears from Ray that it cannot be asked."""
    from ray.exceptions import ActorUnavailableError

    def lost(run: Run, share: object, first: object) -> None:
        raise ActorUnavailableError("RpcError: failed to connect to all addresses", None)

    monkeypatch.setattr(Run, "_trained", lost)
    run = start(job_of(tmp_path, data, cluster, name="lost", steps=4))
    with pytest.raises(ClusterError, match="the Ray cluster's head, or what ran on it, is gone") as caught:
        run.result(timeout=60)
    assert "the same command resumes" in str(caught.value.hint)


def test_a_run_whose_hub_is_killed_ends_with_an_error_and_resumes(tmp_path: Path, data: Path, cluster: Cluster) -> None:
    job = job_of(tmp_path, data, cluster, name="hubless", steps=60, workers__max=1)
    run = start(job)
    wait_for(lambda: run.step >= 2, "two steps")
    for process in cluster.processes("HubActor"):
        process.kill()
    with pytest.raises(ClusterError):
        run.result(timeout=120)
    assert start(with_overrides(job, {"train.steps": 8})).result(timeout=300).step == 8
