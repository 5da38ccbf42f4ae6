"""Runs in processes of their own: without Ray, or by `raylm train` on a local cluster whose nodes come and go.

What a run did is read back from its folder as an `Outcome`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raylm.run.folder import CHECKPOINTS, RunFolder
from raylm.run.lines import read_lines
from raylm.storage import StoragePath
from raylm.testing.cluster import Cluster
from raylm.testing.datasets import write_job

# Orphans are given this long to end by themselves.
ORPHAN_SECONDS = 15.0
OUTAGE_SECONDS = 3.0
# What a run starts on a cluster, as Ray names the processes.
PROCESSES = ("HubActor", "BodyActor", "RayTrain")
DRIVER = [sys.executable, "-m", "raylm.cli.main"]


@dataclass(frozen=True)
class Action:
    """What happens once `step` is finished.

    kill, freeze, drain: the newest node. kill_worker, pause (for PAUSE_SECONDS), slow (for as long as it lives): the
    worker on it. kill_two: those of the two newest nodes at once. add: a node. storage: no checkpoint can be written
    for OUTAGE_SECONDS. driver, hub: killed, and the command given again.
    """

    step: int
    what: str
    workers: int | None = None  # wait for a group of this size first


@dataclass(frozen=True)
class Outcome:
    """What a run folder says when the run is over; `acts` are the actions as they were done, with step and time."""

    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    audit: list[dict[str, Any]]
    seconds: float
    driver_log: str = ""
    acts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """The training loss of every step."""
        return [line["loss"] for line in self.metrics]

    @property
    def sizes(self) -> list[int]:
        """The group's sizes in order, repeats left out."""
        found: list[int] = []
        for line in self.metrics:
            if not found or found[-1] != line["workers"]:
                found.append(line["workers"])
        return found

    def audit_table(self) -> list[tuple[int, int, int, int]]:
        """(step, lane, epoch, sequence id), sorted."""
        return sorted((line["step"], lane, epoch, row) for line in self.audit for lane, row, epoch in line["rows"])

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["event"] == kind]


def environment() -> dict[str, str]:
    """The environment of a process here: one thread, and nothing that points at another cluster."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    # The clusters here take a token, which Ray reads from the user's own file.
    return {
        **env,
        "RAY_AUTH_MODE": "token",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }


def read_outcome(run: Path, seconds: float = 0.0, driver_log: str = "", acts: Sequence[dict[str, Any]] = ()) -> Outcome:
    """What this run folder says; `seconds`, `driver_log` and `acts` are what its driver knows besides."""

    folder = RunFolder(StoragePath(str(run)))
    metrics, events, audit = (read_lines(file) for file in (folder.metrics, folder.events, folder.audit))
    return Outcome(metrics, events, audit, seconds, driver_log, list(acts))


def run_alone(job: Path, *, workers: int = 1, timeout_seconds: float = 300) -> Outcome:
    """The job without Ray, on this many processes; RuntimeError when one of them fails."""
    settings = yaml.safe_load(job.read_text())
    command = [sys.executable, "-m", "raylm.train.without_ray", str(job)]
    if workers > 1:
        command = [
            *[sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--standalone"],
            *["-m", "raylm.train.without_ray", str(job)],
        ]
    began = time.monotonic()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout_seconds)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return read_outcome(Path(settings["storage"]) / settings["name"], time.monotonic() - began)


def run_at_sizes(folder: Path, settings: dict[str, Any], sizes: Sequence[int] = (1, 2)) -> dict[int, Outcome]:
    """A job without Ray at several numbers of workers, each as a run of its own: its losses must agree.

    `settings` are those of `raylm.testing.datasets.job_settings`, with the plugins and the objective to be tested.
    """
    return {
        size: run_alone(write_job(folder, {**settings, "name": f"{settings['name']}-{size}"}), workers=size)
        for size in sizes
    }


@dataclass
class Driver:
    """`raylm train` in a process of its own, which may be killed and started again."""

    job: Path
    address: str
    log: Path

    def start(self) -> None:
        """Start it, its output behind what is in the log."""
        command = [*DRIVER, "train", str(self.job), "--set", f"cluster.address={self.address}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


def run_elastic(
    job: Path, actions: Sequence[Action], *, slots: int, timeout_seconds: float = 420, drain_seconds: float = 8.0
) -> Outcome:
    """`raylm train` on a cluster of its own while `actions` happen, each once its step is finished.

    RuntimeError when the command fails or ends before all actions were due, TimeoutError when it takes too long.
    """
    settings = yaml.safe_load(job.read_text())
    run = Path(settings["storage"]) / settings["name"]
    cluster = Cluster(slots)
    began = time.monotonic()
    log = job.with_suffix(".log")
    driver = Driver(job, cluster.address, log)
    driver.start()
    outage = Outage(run / CHECKPOINTS)
    waiting, acts = list(actions), []
    try:
        while driver.process.poll() is None:
            time.sleep(0.05)
            cluster.reclaim()
            outage.end_if_due()
            if time.monotonic() - began > timeout_seconds:
                raise TimeoutError(f"no end after {timeout_seconds} s; log:\n{log.read_text()[-4000:]}")
            step, size = _last(run)
            if waiting and step >= waiting[0].step and waiting[0].workers in (None, size):
                action = waiting.pop(0)
                acts.append({"what": action.what, "step": step, "at": time.time()})
                if action.what in ("driver", "hub"):
                    outage.end()  # a start needs storage
                if action.what == "storage":
                    outage.begin()
                else:
                    _act(action.what, cluster, driver, drain_seconds)
        _no_orphans(cluster)
    finally:
        driver.process.kill()
        cluster.close()
        outage.end()
    outcome = read_outcome(run, time.monotonic() - began, log.read_text(), acts)
    if driver.process.returncode:
        raise RuntimeError(f"raylm train gave {driver.process.returncode}: {log.read_text()[-6000:]}")
    if waiting:
        raise RuntimeError(f"the run ended before {waiting}; {acts}")
    return outcome


def _act(what: str, cluster: Cluster, driver: Driver, drain_seconds: float) -> None:
    if what == "hub":
        for process in cluster.processes("HubActor"):
            process.kill()
        driver.process.wait(120)
        driver.start()
    elif what == "driver":
        driver.kill()
        driver.start()
    else:
        cluster.act(what, drain_seconds)


class Outage:
    """A folder that cannot be written for a while: a file stands in its place."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._away = folder, folder.with_name(f"{folder.name}-away")
        self._until: float | None = None

    def begin(self) -> None:
        """From now on, for OUTAGE_SECONDS."""
        if self._until is None and self._folder.is_dir():
            self._folder.rename(self._away)
            self._folder.touch()
            self._until = time.monotonic() + OUTAGE_SECONDS

    def end_if_due(self) -> None:
        """Put the folder back when its time is up."""
        if self._until is not None and time.monotonic() > self._until:
            self.end()

    def end(self) -> None:
        """Put the folder back."""
        if self._until is not None:
            self._folder.unlink()
            self._away.rename(self._folder)
            self._until = None


def _no_orphans(cluster: Cluster) -> None:
    """RuntimeError when a process of the run outlives its run, once what was frozen is awake."""
    cluster.thaw()
    until = time.monotonic() + ORPHAN_SECONDS
    while left := [process for name in PROCESSES for process in cluster.processes(name)]:
        if time.monotonic() > until:
            raise RuntimeError(f"{len(left)} processes outlived the run: {left}")
        time.sleep(0.1)


def _last(run: Path) -> tuple[int, int]:
    """The last finished step and the size of its group."""
    try:
        line = read_lines(RunFolder(StoragePath(str(run))).metrics)[-1]
    except IndexError:
        return 0, 0
    return line["step"], line["workers"]
