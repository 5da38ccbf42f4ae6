"""A Ray cluster of several nodes on this machine, whose nodes are killed, frozen, drained and added."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from raylm.deploy.local import LocalCluster, NodeShape

# Longer than the driver's patience with a silent worker.
PAUSE_SECONDS = 9.0
# A slow worker stands still for the first of these again and again, and runs for the second.
STILL_SECONDS, RUN_SECONDS = 0.06, 0.04


class Cluster:
    """A head with CPUs for data and `slots` nodes that hold one worker each; `address` is for `cluster.address`."""

    def __init__(self, slots: int) -> None:
        # Ray's sockets need a short path.
        self._folder = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))
        self._cluster = LocalCluster(self._folder)
        self._cluster.up(slots, head=NodeShape(cpus=2, slots=0), each=NodeShape(cpus=1, slots=1))
        self.address: str = self._cluster.address
        self._doomed: list[tuple[float, str]] = []
        self._paused: list[tuple[float, psutil.Process]] = []
        self._gone = {"head"}
        # Apart, because nodes are added one after the other: two that start at once choose the same socket names.
        self._adding, self._draining = ThreadPoolExecutor(1), ThreadPoolExecutor()
        self._under_way: list[Future[None]] = []

    def act(self, what: str, drain_seconds: float) -> None:
        """Do one thing to the newest node; whatever takes seconds happens beside the training."""
        if what == "add":
            self._start(self._adding, self._add)
            return
        names = [node.name for node in self._cluster.alive() if node.name not in self._gone]
        if what in ("kill_worker", "kill_two", "pause", "slow"):
            for name in names[-2 if what == "kill_two" else -1 :]:
                self._hit_workers(name, what)
            return
        name = names[-1]
        self._gone.add(name)
        if what == "kill":
            self._cluster.kill(name)
        elif what == "freeze":
            self._cluster.send(name, signal.SIGSTOP)
        elif what == "drain":
            self._start(self._draining, lambda: self._drain(name, drain_seconds))
        else:
            raise ValueError(f"there is no action {what!r}")

    def _hit_workers(self, node: str, what: str) -> None:
        for process in self._cluster.processes(node):
            with suppress(psutil.NoSuchProcess):
                if "BodyActor" in " ".join(process.cmdline()):
                    self._hit(process, what)

    def _hit(self, process: psutil.Process, what: str) -> None:
        if what == "pause":
            process.suspend()
            self._paused.append((time.monotonic() + PAUSE_SECONDS, process))
        elif what == "slow":
            Thread(target=_hold_up, args=(process,), daemon=True).start()
        else:
            process.kill()

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of this cluster's nodes whose command line holds `name`, and of no other cluster."""
        found = []
        for node in self._cluster.alive():
            for process in self._cluster.processes(node.name):
                with suppress(psutil.NoSuchProcess):
                    if name in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def reclaim(self) -> None:
        """Kill nodes whose deadline has passed and wake paused workers; raises what went wrong beside the training."""
        for one in [one for one in self._under_way if one.done()]:
            self._under_way.remove(one)
            one.result()
        for due, process in list(self._paused):
            if due <= time.monotonic():
                self._paused.remove((due, process))
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        for due, name in list(self._doomed):
            if due <= time.monotonic():
                self._doomed.remove((due, name))
                self._cluster.kill(name)

    def thaw(self) -> None:
        """Let frozen nodes and paused workers go on, long after they were given up."""
        for node in self._cluster.alive():
            self._cluster.send(node.name, signal.SIGCONT)

    def close(self) -> None:
        """End every process of the cluster."""
        for executor in (self._adding, self._draining):
            executor.shutdown(wait=False, cancel_futures=True)
        self.thaw()
        self._cluster.down()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, executor: ThreadPoolExecutor, action: Callable[[], Any]) -> None:
        self._under_way.append(executor.submit(action))

    def _add(self) -> None:
        self._cluster.add(1, NodeShape(cpus=1, slots=1))

    def _drain(self, name: str, seconds: float) -> None:
        self._cluster.drain(name, seconds)
        self._doomed.append((time.monotonic() + seconds, name))


def _hold_up(process: psutil.Process) -> None:
    """Have a process stand still again and again, for as long as it lives."""
    with suppress(psutil.NoSuchProcess):
        while process.is_running():
            process.suspend()
            time.sleep(STILL_SECONDS)
            process.resume()
            time.sleep(RUN_SECONDS)
