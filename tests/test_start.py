"""Runs that a program starts, follows and stops: from any thread, several at once, in a process left as it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.config.job import Job
from raylm.config.load import load_job
from raylm.run.events import Event, Finished, Started, StepMetrics
from raylm.testing.cluster import Cluster
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.train.launch import Run, start

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
    result = run.result(timeout=120)
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
