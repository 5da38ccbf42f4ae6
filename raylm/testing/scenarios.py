"""Elastic scenarios on a real Ray cluster of several nodes on one machine.

Comes in: a job and a list of actions (kill a node, drain one, add one, restart the driver …), each due at a step.
Leaves: the run folder's own record, read back as an `Outcome`. The driver is `raylm train` in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from raylm.deploy.local import SEAT, LocalCluster, NodeShape
from raylm.run.folder import RunFolder
from raylm.run.log import read_lines
from raylm.shards import Counts, DatasetManifest, RowFormat, ShardWriter, write_manifest
from raylm.storage import StoragePath

SEQUENCE, VOCABULARY = 64, 512
DRIVER = [sys.executable, "-m", "raylm.cli.main"]


@dataclass(frozen=True)
class Action:
    """What happens once `step` is finished: kill, kill_worker, freeze, drain, add, or driver (killed and restarted)."""

    step: int
    what: str
    workers: int | None = None  # wait for a group of this size first


@dataclass(frozen=True)
class Outcome:
    """What a run folder says when it is over."""

    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    audit: list[dict[str, Any]]
    seconds: float
    driver_log: str = ""
    acts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
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
        return [event for event in self.events if event["event"] == kind]


def make_data(folder: Path, *, rows: int, held_out: int = 16, seed: int = 0) -> Path:
    """A small data set whose tokens a model can learn: noisy counting with a step of its own in each row."""
    random = np.random.default_rng(seed)
    format_ = RowFormat(SEQUENCE, VOCABULARY, "none", eos_id=0, group_rows=8)
    shards = {}
    for split, count in (("train", rows), ("held-out", held_out)):
        made = []
        for part, start in enumerate(range(0, count, 100)):
            writer = ShardWriter(StoragePath(str(folder / f"{split}-{part:03d}.parquet")), format_)
            for _ in range(start, min(start + 100, count)):
                tokens = (random.integers(1, VOCABULARY) + random.integers(1, 4) * np.arange(SEQUENCE)) % VOCABULARY
                noisy = np.where(random.random(SEQUENCE) < 0.1, random.integers(1, VOCABULARY, SEQUENCE), tokens)
                writer.add(noisy.astype(format_.dtype), [0])
            made.append(writer.close())
        shards[split] = made
    counts = Counts(rows * SEQUENCE, held_out * SEQUENCE, held_out * SEQUENCE)
    manifest = DatasetManifest.of(format_, train=shards["train"], held_out=shards["held-out"], counts=counts)
    write_manifest(StoragePath(str(folder)), manifest)
    return folder


def job_settings(storage: Path, data: Path, *, name: str, steps: int, stage: int = 1, **changes: Any) -> dict[str, Any]:
    """A job as a mapping: fp32, audited, 12 lanes; `changes` by dotted key with `__` for the dot."""
    settings: dict[str, Any] = {
        "name": name,
        "storage": str(storage),
        "data": {"path": str(data), "chunk_rows": 8, "window_chunks": 4, "reader": "threads"},
        "model": {"preset": "tiny", "dtype": "fp32"},
        "batch": {"sequences": 24, "micro_batch": 2},
        "optim": {"lr": 1e-3, "warmup_steps": 3},
        "zero": {"stage": stage},
        "train": {"steps": steps, "audit": True, "seed": 7},
        "workers": {"min": 1, "max": 3, "gpu": False, "resources": {SEAT: 1}, "grow_check_seconds": 1.0},
        "checkpoint": {"every_steps": 5},
        "evaluate": {"every_steps": 10, "sequences": 16},
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        if leaf:
            settings.setdefault(section, {})[leaf] = value
        else:
            settings[section] = value
    return settings


def write_job(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{settings['name']}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def environment() -> dict[str, str]:
    """One thread a process, and nothing that points at another cluster."""
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
    folder = RunFolder(StoragePath(str(run)))
    metrics, events, audit = (read_lines(file) for file in (folder.metrics, folder.events, folder.audit))
    return Outcome(metrics, events, audit, seconds, driver_log, list(acts))


def run_alone(job: Path, *, workers: int = 1, timeout_seconds: float = 300) -> Outcome:
    """The job without Ray, on this many processes."""
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


class Cluster:
    """A head with CPUs for data and nodes with one seat each, all on this machine."""

    def __init__(self, seats: int) -> None:
        # Ray's sockets need a short path.
        self._folder = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))
        self._cluster = LocalCluster(self._folder)
        self._cluster.up(seats, head=NodeShape(cpus=2, seats=0), each=NodeShape(cpus=1, seats=1))
        self.address: str = self._cluster.address
        self._doomed: list[tuple[float, str]] = []
        self._gone = {"head"}
        self._adding = threading.Lock()
        self._failed: list[BaseException] = []

    def act(self, what: str, drain_seconds: float) -> None:
        """Do one thing to the newest node; whatever takes seconds happens beside the training."""
        if what == "add":
            self._beside(self._add)
            return
        name = [node.name for node in self._cluster.alive() if node.name not in self._gone][-1]
        if what == "kill_worker":
            for process in self._cluster.processes(name):
                with suppress(psutil.NoSuchProcess):
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        process.kill()
            return
        self._gone.add(name)
        if what == "kill":
            self._cluster.kill(name)
        elif what == "freeze":
            self._cluster.send(name, signal.SIGSTOP)
        elif what == "drain":
            self._beside(lambda: self._drain(name, drain_seconds))

    def _beside(self, act: Callable[[], None]) -> None:
        def run() -> None:
            try:
                act()
            except Exception as error:
                self._failed.append(error)

        threading.Thread(target=run, daemon=True).start()

    def _add(self) -> None:
        with self._adding:  # two that start at once would choose the same socket names
            self._cluster.add(1, NodeShape(cpus=1, seats=1))

    def _drain(self, name: str, seconds: float) -> None:
        self._cluster.drain(name, seconds)
        self._doomed.append((time.monotonic() + seconds, name))

    def reclaim(self) -> None:
        """Kill the nodes whose drain deadline has passed; raises what went wrong beside the training."""
        if self._failed:
            raise self._failed[0]
        for due, name in list(self._doomed):
            if due <= time.monotonic():
                self._doomed.remove((due, name))
                self._cluster.kill(name)

    def close(self) -> None:
        for node in self._cluster.alive():
            self._cluster.send(node.name, signal.SIGCONT)
        self._cluster.down()
        shutil.rmtree(self._folder, ignore_errors=True)


def run_elastic(
    job: Path, actions: Sequence[Action], *, seats: int, timeout_seconds: float = 420, drain_seconds: float = 8.0
) -> Outcome:
    """`raylm train` on a cluster of its own while `actions` happen, each once its step is finished."""
    settings = yaml.safe_load(job.read_text())
    run = Path(settings["storage"]) / settings["name"]
    cluster = Cluster(seats)
    began = time.monotonic()
    log_path = job.with_suffix(".log")
    acts: list[dict[str, Any]] = []
    with log_path.open("ab") as log:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [*DRIVER, "train", str(job), "--set", f"cluster.address={cluster.address}"],
                stdout=log,
                stderr=log,
                env=environment(),
            )

        driver = start()
        waiting = list(actions)
        try:
            while True:
                time.sleep(0.05)
                now = time.monotonic()
                cluster.reclaim()
                if now - began > timeout_seconds:
                    raise TimeoutError(f"no end after {timeout_seconds} s; log:\n{log_path.read_text()[-4000:]}")
                step, size = _last(run)
                if waiting and step >= waiting[0].step and waiting[0].workers in (None, size):
                    action = waiting.pop(0)
                    acts.append({"what": action.what, "step": step, "at": time.time()})
                    if action.what == "driver":
                        driver.kill()
                        driver.wait()
                        driver = start()
                    else:
                        cluster.act(action.what, drain_seconds)
                if driver.poll() is not None:
                    break
        finally:
            driver.kill()
            cluster.close()
    outcome = read_outcome(run, time.monotonic() - began, log_path.read_text(), acts)
    if driver.returncode:
        raise RuntimeError(f"raylm train gave {driver.returncode}: {log_path.read_text()[-6000:]}")
    if waiting:
        raise RuntimeError(f"the run ended before {waiting}; {acts}")
    return outcome


def _last(run: Path) -> tuple[int, int]:
    """The last finished step and the size of its group."""
    try:
        line = read_lines(RunFolder(StoragePath(str(run))).metrics)[-1]
    except IndexError:
        return 0, 0
    return line["step"], line["workers"]
