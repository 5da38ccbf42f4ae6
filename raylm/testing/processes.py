"""A run's bodies as plain processes around a real hub, without Ray: for faults of one process or of its network.

with running(job, [Machine("a", "127.0.0.1"), Machine("b", "127.0.0.1")], host="127.0.0.1") as run:
    wait_for(lambda: run.hub.status().step > 10)
    run.cluster.process("b").kill()
"""

from __future__ import annotations

import os
import pickle
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from raylm.config.job import Job
from raylm.coordination.contract import calls
from raylm.coordination.hub import Hub
from raylm.coordination.messages import Birth
from raylm.run.folder import RunFolder
from raylm.runtime.shares import Share
from raylm.train.sources import publish

END_SECONDS = 10.0


@dataclass(frozen=True)
class Machine:
    """A place for one body. host: where others reach it. prefix: what its command begins with, as `ip netns exec`."""

    name: str
    host: str
    prefix: tuple[str, ...] = ()


class _Manager(BaseManager):
    """Carries calls of the bodies to the hub."""


class ProcessCluster:
    """Machines whose bodies are processes of this one. logs: the folder that holds what they print."""

    def __init__(self, job: Job, machines: Sequence[Machine], *, host: str, logs: Path) -> None:
        self._job, self._machines, self._logs = job, list(machines), logs
        self._key = secrets.token_bytes(16)
        self._bodies: dict[int, tuple[Machine, subprocess.Popen[bytes]]] = {}
        self._asked: dict[int, tuple[str, str]] = {}
        self._placed: list[int] = []
        self._hub: Hub | None = None
        self._lock = threading.Lock()
        _Manager.register("coordination", callable=lambda: self._hub, exposed=[call.name for call in calls()])
        server = _Manager(address=(host, 0), authkey=self._key).get_server()
        self._address = server.address
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def serve(self, hub: Hub) -> None:
        """The hub whose bodies these are."""
        self._hub = hub

    def process(self, machine: str) -> subprocess.Popen[bytes]:
        """The process of the body on a machine."""
        return next(process for place, process in self._bodies.values() if place.name == machine)

    def ask(self, body: int, address: str, token: str, *, avoid: Collection[str]) -> None:
        """Ask for a body, which comes into being when there is room on a machine that is not one of `avoid`."""
        with self._lock:
            self._asked[body] = (address, token)
            self._bear(avoid)

    def ended(self) -> Sequence[tuple[int, str, bool]]:
        """Bodies that ended since the last call."""
        with self._lock:
            over = [body for body, (_, process) in self._bodies.items() if process.poll() is not None]
            for body in over:
                del self._bodies[body]
            self._bear(())
            return [(body, "its process ended", False) for body in over]

    def placed(self) -> Sequence[int]:
        """Bodies that have found a place since the last call."""
        found, self._placed = self._placed, []
        return found

    def end(self, body: int) -> None:
        """End a body, or no longer ask for it."""
        with self._lock:
            self._asked.pop(body, None)
            _, process = self._bodies.get(body, (None, None))
        if process is not None:
            process.kill()

    def draining(self) -> Mapping[str, float | None]:
        """No machine is about to be reclaimed."""
        return {}

    def share(self, nodes: Sequence[str], *, waiting: bool) -> Share | None:
        """All of it."""
        return Share(len(self._machines))

    def room(self) -> int:
        """Machines without a body."""
        return len(self._free())

    def per_worker(self) -> Mapping[str, float]:
        """What each body reserves."""
        return {"machine": 1.0}

    def close(self) -> None:
        """End every process."""
        for _, process in self._bodies.values():
            process.kill()
            process.wait(END_SECONDS)

    def _free(self) -> list[Machine]:
        taken = {machine for machine, _ in self._bodies.values()}
        return [machine for machine in self._machines if machine not in taken]

    def _bear(self, avoid: Collection[str]) -> None:
        while self._asked and (free := [one for one in self._free() if one.name not in avoid]):
            body = min(self._asked)
            birth = Birth(self._job, body, *self._asked.pop(body), self._job.workers.silence_seconds)
            self._bodies[body] = free[0], self._started(free[0], birth)
            self._placed.append(body)

    def _started(self, machine: Machine, birth: Birth) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        with (self._logs / f"body-{birth.number}.log").open("wb") as log:
            process = subprocess.Popen(
                [*machine.prefix, sys.executable, "-m", "raylm.testing.processes"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
            )
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((birth, machine, self._address, self._key)))
        process.stdin.close()
        return process


@dataclass(frozen=True)
class ProcessRun:
    """A run under way."""

    hub: Hub
    cluster: ProcessCluster
    folder: RunFolder


@contextmanager
def running(job: Job, machines: Sequence[Machine], *, host: str) -> Iterator[ProcessRun]:
    """Train a job on these machines; what still runs at the end is ended. host: at which they reach this process."""
    from raylm.checkpoint.save import claim_fence

    folder = RunFolder.of(job)
    publish(job, folder)
    logs = folder.path.local_path()
    assert logs is not None, "a run folder on this machine"
    cluster = ProcessCluster(job, machines, host=host, logs=logs)
    hub = Hub(
        folder,
        job.workers,
        cluster,
        host=host,
        audit=job.train.audit,
        claim=lambda: claim_fence(folder.checkpoints),
    )
    cluster.serve(hub)
    try:
        yield ProcessRun(hub, cluster, folder)
    finally:
        hub.close()
        cluster.close()


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> float:
    """Wait for what is about to happen; the seconds that it took. TimeoutError after `seconds`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"it did not happen within {seconds:g} s")
        time.sleep(0.02)
    return time.monotonic() - began


def _live() -> None:
    """One body, as its cluster says on standard input."""
    from raylm.train.body import Body

    birth, machine, address, key = pickle.loads(sys.stdin.buffer.read())
    _Manager.register("coordination")
    manager = _Manager(address=address, authkey=key)
    manager.connect()
    coordination: Any = manager.coordination()  # type: ignore[attr-defined]
    Body(birth, machine.name, machine.host, coordination).live()


if __name__ == "__main__":
    _live()
