"""Elastic scenarios on a real several-node Ray cluster on this machine, for benchmarks/elastic.py and the tests.

Comes in: a job and a list of actions (kill a node, drain one, add one, restart the driver …), each due at a step.
Leaves: the run folder's own record, read back as an `Outcome`. The driver is `raylm train` in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from raylm.shards import ShardWriter, make_manifest, token_dtype, write_manifest
from raylm.storage import Place

SEQUENCE, VOCABULARY = 64, 512
# One worker a node: each worker wants one of these, each worker node has one.
SEAT = "seat"
DRIVER = [sys.executable, "-m", "raylm.cli.main"]
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


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
    notes: list[str] = field(default_factory=list)

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
    dtype = token_dtype(VOCABULARY)
    shards = {}
    for split, count in (("train", rows), ("held-out", held_out)):
        made = []
        for part, start in enumerate(range(0, count, 100)):
            writer = ShardWriter(
                Place(str(folder / f"{split}-{part:03d}.parquet")), SEQUENCE, dtype, 8, tokenizer="none"
            )
            for _ in range(start, min(start + 100, count)):
                tokens = (random.integers(1, VOCABULARY) + random.integers(1, 4) * np.arange(SEQUENCE)) % VOCABULARY
                noisy = np.where(random.random(SEQUENCE) < 0.1, random.integers(1, VOCABULARY, SEQUENCE), tokens)
                writer.add(noisy.astype(dtype), [0])
            made.append(writer.close())
        shards[split] = made
    manifest = make_manifest(
        sequence_length=SEQUENCE,
        vocab_size=VOCABULARY,
        tokenizer="none",
        eos_id=0,
        train=shards["train"],
        held_out=shards["held-out"],
        train_tokens=rows * SEQUENCE,
        held_out_tokens=held_out * SEQUENCE,
        held_out_bytes=held_out * SEQUENCE,
        group_rows=8,
    )
    write_manifest(Place(str(folder)), manifest)
    return folder


def job_settings(storage: Path, data: Path, *, name: str, steps: int, stage: int = 1, **changes: Any) -> dict[str, Any]:
    """A job as a mapping: fp32, audited, 12 lanes; `changes` by dotted key with `__` for the dot."""
    settings: dict[str, Any] = {
        "name": name,
        "storage": str(storage),
        "data": {"path": str(data), "chunk_rows": 8, "window_chunks": 4, "deliver": "threads"},
        "model": {"preset": "tiny", "dtype": "fp32"},
        "batch": {"sequences": 24, "micro": 2},
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
    return {**env, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}


def read_outcome(run: Path, seconds: float = 0.0, driver_log: str = "", notes: Sequence[str] = ()) -> Outcome:
    def lines(name: str) -> list[dict[str, Any]]:
        path = run / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return Outcome(
        lines("metrics.jsonl"), lines("events.jsonl"), lines("audit/audit.jsonl"), seconds, driver_log, list(notes)
    )


def run_alone(job: Path, *, workers: int = 1, timeout_seconds: float = 300) -> Outcome:
    """The job without Ray, on this many processes."""
    settings = yaml.safe_load(job.read_text())
    command = [sys.executable, "-m", "raylm.train.worker", str(job)]
    if workers > 1:
        command = [
            *[sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--standalone"],
            *["-m", "raylm.train.worker", str(job)],
        ]
    began = time.monotonic()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout_seconds)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return read_outcome(Path(settings["storage"]) / settings["name"], time.monotonic() - began)


class Cluster:
    """A head with CPUs for data and nodes with one seat each, all on this machine."""

    def __init__(self, seats: int) -> None:
        import ray._private.utils
        from ray.cluster_utils import Cluster as RayCluster

        # It would write a machine-wide file that another test run reads.
        ray._private.utils.write_ray_address = lambda *args, **kwargs: None
        self._folder = tempfile.mkdtemp(prefix="rl-")
        self._cluster = RayCluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "include_dashboard": False,
                "_system_config": HEALTH,
                "object_store_memory": 200_000_000,
            },
        )
        self.address: str = self._cluster.address
        self.nodes: list[Any] = []
        for _ in range(seats):
            self.add()

    def add(self) -> None:
        self.nodes.append(
            self._cluster.add_node(num_cpus=1, resources={SEAT: 1}, object_store_memory=100_000_000, wait=False)
        )

    def processes(self, node: Any) -> list[psutil.Process]:
        """A node's raylet and everything below it."""
        raylets = node.all_processes["raylet"]
        found: list[psutil.Process] = []
        for info in raylets:
            try:
                raylet = psutil.Process(info.process.pid)
                found += [raylet, *raylet.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found

    def signal(self, node: Any, number: signal.Signals) -> None:
        for process in self.processes(node):
            with suppressed():
                process.send_signal(number)

    def kill_worker(self, node: Any) -> None:
        """SIGKILL the training worker alone; its node lives on."""
        for process in self.processes(node):
            with suppressed():
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()

    def drain(self, node: Any, seconds: float) -> None:
        from ray._raylet import GcsClient

        reason = 2  # DRAIN_NODE_REASON_PREEMPTION
        deadline = int((time.time() + seconds) * 1000)
        GcsClient(address=self.address).drain_node(node.node_id, reason, "reclaimed by the test", deadline)

    def close(self) -> None:
        for node in self.nodes:
            self.signal(node, signal.SIGCONT)
        self._cluster.shutdown()


@contextmanager
def suppressed() -> Iterator[None]:
    try:
        yield
    except (psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError):
        pass


def run_elastic(
    job: Path, actions: Sequence[Action], *, seats: int, timeout_seconds: float = 420, drain_seconds: float = 8.0
) -> Outcome:
    """`raylm train` on a cluster of its own while `actions` happen, each once its step is finished."""
    settings = yaml.safe_load(job.read_text())
    run = Path(settings["storage"]) / settings["name"]
    cluster = Cluster(seats)
    began = time.monotonic()
    log_path = job.with_suffix(".log")
    notes: list[str] = []
    doomed: list[tuple[float, Any]] = []
    with log_path.open("ab") as log:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [*DRIVER, "train", str(job), "--set", f"where.address={cluster.address}"],
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
                for due, node in [item for item in doomed if item[0] <= now]:
                    cluster.signal(node, signal.SIGKILL)
                    doomed.remove((due, node))
                if now - began > timeout_seconds:
                    raise TimeoutError(f"no end after {timeout_seconds} s; log:\n{log_path.read_text()[-4000:]}")
                step, size = _last(run)
                if waiting and step >= waiting[0].step and waiting[0].workers in (None, size):
                    action = waiting.pop(0)
                    notes.append(f"{action.what} at step {step}, {now - began:.1f} s")
                    if action.what == "driver":
                        driver.kill()
                        driver.wait()
                        driver = start()
                    else:
                        _act(cluster, action.what, doomed, drain_seconds)
                if driver.poll() is not None:
                    break
        finally:
            driver.kill()
            cluster.close()
    outcome = read_outcome(run, time.monotonic() - began, log_path.read_text(), notes)
    if driver.returncode:
        raise RuntimeError(f"raylm train gave {driver.returncode}: {log_path.read_text()[-6000:]}")
    if waiting:
        raise RuntimeError(f"the run ended before {waiting}; {notes}")
    return outcome


def _last(run: Path) -> tuple[int, int]:
    """The last finished step and the size of its group."""
    try:
        line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return 0, 0
    return line["step"], line["workers"]


def _act(cluster: Cluster, what: str, doomed: list[tuple[float, Any]], drain_seconds: float) -> None:
    if what == "add":
        cluster.add()
        return
    node = cluster.nodes[-1]
    if what == "kill_worker":
        cluster.kill_worker(node)
        return
    cluster.nodes.remove(node)
    if what == "kill":
        cluster.signal(node, signal.SIGKILL)
    elif what == "freeze":
        cluster.signal(node, signal.SIGSTOP)
    elif what == "drain":
        cluster.drain(node, drain_seconds)
        doomed.append((time.monotonic() + drain_seconds, node))
