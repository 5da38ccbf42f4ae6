"""A Ray cluster of several real nodes on this machine, whose nodes can be lost.

Each node is a `ray start` of its own. What was started is written to `cluster.json` in the cluster's folder, so that
another process can add, kill or drain nodes, and so that nothing else is ever ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from raylm.errors import ClusterError, ConfigError, TrainingError
from raylm.runtime.ports import free_port
from raylm.runtime.ray_internals import HEALTH_CHECKS, raylet_node_id
from raylm.runtime.sockets import FOLDER_BYTES, fits

HEAD = "head"
# Several nodes that start on few processors take their time.
PATIENCE = {"RAY_agent_register_timeout_ms": "60000", "RAY_raylet_start_wait_time_s": "60"}
# A node gives this many of a resource of this name, one for each worker that it can hold.
SLOT = "worker_slot"


@dataclass(frozen=True)
class Node:
    """One `ray start`; `started` tells its process from a later one with the same id."""

    name: str
    pid: int
    started: float


@dataclass(frozen=True)
class NodeShape:
    """What each node offers."""

    cpus: int = 1
    slots: int = 1
    object_store_bytes: int = 100_000_000


class LocalCluster:
    """The cluster whose state stands in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._state = self.folder / "cluster.json"

    def up(self, nodes: int, *, head: NodeShape, each: NodeShape) -> None:
        """Start a head and `nodes` further nodes, and wait until all have joined."""
        if self._state.exists() and self.alive():
            raise ConfigError(
                f"a cluster is running in {self.folder}", hint="take it down first, or use another folder"
            )
        if not fits(str(self.folder)):
            raise ConfigError(
                f"{self.folder} is too long a path for Ray's sockets",
                hint=f"choose one of {FOLDER_BYTES} characters or less",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _make_token()
        port = free_port()
        self._write(f"127.0.0.1:{port}", [])
        flags = [
            *("--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false"),
            *(f"--ray-client-server-port={free_port()}", f"--system-config={json.dumps(HEALTH_CHECKS)}"),
        ]
        try:
            self._up(HEAD, head, flags)
            self.add(nodes, each)
        except TrainingError:
            self.down()
            raise

    @property
    def address(self) -> str:
        """What `cluster.address` must be."""
        return str(self._read()["address"])

    def nodes(self) -> list[Node]:
        """Every node started, dead or alive, in order."""
        return [Node(**node) for node in self._read()["nodes"]]

    def alive(self) -> list[Node]:
        """The nodes whose process lives."""
        return [node for node in self.nodes() if _process(node) is not None]

    def add(self, count: int, shape: NodeShape) -> list[Node]:
        """Start so many more nodes, and wait until they have joined."""
        self._need_head()
        added = []
        for _ in range(count):
            # One after the other: two that start at once choose the same socket names, and one of them fails.
            added.append(self._up(f"node-{len(self.nodes())}", shape, [f"--address={self.address}"]))
        return added

    def drain(self, name: str, seconds: float) -> None:
        """Tell Ray that a node will be reclaimed in so many seconds; the node lives on until it is killed."""
        self._need_head()
        command = [
            *(*_ray(), "drain-node", f"--address={self.address}", f"--node-id={self._ray_id(name)}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=reclaimed by hand"),
            f"--deadline-remaining-seconds={int(seconds)}",
        ]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise TrainingError(f"Ray would not drain {name}: {done.stderr.strip()[-300:]}")

    def kill(self, name: str) -> None:
        """End a node and all that runs on it at once, as when its machine is taken away."""
        self.send(name, signal.SIGKILL)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to every process of a node: SIGSTOP freezes it, SIGCONT thaws it."""
        _signal(self.processes(name), number)

    def processes(self, name: str) -> list[psutil.Process]:
        """A node's processes, its workers among them."""
        return _tree(self._find(name))

    def down(self) -> None:
        """End every node that this cluster started, and nothing else."""
        processes = [process for node in self.nodes() for process in _tree(node)]
        _signal(processes, signal.SIGTERM)
        _, stubborn = psutil.wait_procs(processes, timeout=5)
        _signal(stubborn, signal.SIGKILL)
        psutil.wait_procs(stubborn, timeout=5)
        self._state.unlink(missing_ok=True)

    def _need_head(self) -> None:
        """What Ray's own commands find out only after minutes."""
        if not any(node.name == HEAD for node in self.alive()):
            raise ClusterError(
                f"the head of the cluster in {self.folder} is gone, and the cluster with it",
                hint="take it down and start it again: raylm cluster down, raylm cluster up",
            )

    def _find(self, name: str) -> Node:
        for node in self.alive():
            if node.name == name:
                return node
        living = ", ".join(node.name for node in self.alive()) or "none"
        raise ConfigError(f"no living node {name!r} in {self.folder}", hint=f"living nodes: {living}")

    def _ray_id(self, name: str) -> str:
        """What Ray calls a node: its raylet was told on its command line."""
        for process in self.processes(name):
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            found = raylet_node_id(words)
            if found is not None:
                return found
        raise TrainingError(f"{name} has no raylet any more", hint="see the cluster's status")

    def _up(self, name: str, shape: NodeShape, flags: Sequence[str]) -> Node:
        """One more node, started and joined; on a machine too busy for Ray's own deadlines, at the second try."""
        try:
            return self._await(self._start(name, shape, flags))
        except TrainingError:
            return self._await(self._start(name, shape, flags))

    def _start(self, name: str, shape: NodeShape, flags: Sequence[str]) -> Node:
        command = [
            *(*_ray(), "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
            *(f"--node-name={name}", f"--num-cpus={shape.cpus}", "--num-gpus=0"),
            *(f"--resources={json.dumps({SLOT: shape.slots})}", f"--object-store-memory={shape.object_store_bytes}"),
            # Ports of Ray's own choosing: its fixed ranges would meet on one machine.
            *("--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"),
            *(f"--metrics-export-port={free_port()}", *flags),
        ]
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                command, env=_environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        node = Node(name, process.pid, psutil.Process(process.pid).create_time())
        others = [other for other in self.nodes() if other.name != name]
        self._write(self.address, [*others, node])
        return node

    def _await(self, node: Node, timeout_seconds: float = 90) -> Node:
        deadline = time.monotonic() + timeout_seconds
        while b"Ray runtime started" not in self._log(node.name).read_bytes():
            late = time.monotonic() > deadline
            if late or _process(node) is None:
                said = self._log(node.name).read_text(errors="replace").strip().splitlines()[-1:]
                reason = f"did not start within {timeout_seconds:g} s" if late else "ended while it started"
                _signal(_tree(node), signal.SIGKILL)
                raise TrainingError(
                    f"{node.name} {reason}: {''.join(said)}", hint=f"see {self._log(node.name)}; is the machine busy?"
                )
            time.sleep(0.1)
        return node

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _read(self) -> dict[str, Any]:
        if not self._state.exists():
            raise ConfigError(f"no cluster in {self.folder}", hint="start one first")
        found = json.loads(self._state.read_text())
        assert isinstance(found, dict)
        return found

    def _write(self, address: str, nodes: Sequence[Node]) -> None:
        self._state.write_text(json.dumps({"address": address, "nodes": [asdict(node) for node in nodes]}, indent=1))


def _ray() -> list[str]:
    # The `ray` of this very interpreter, wherever it is installed and whether or not it is on the PATH.
    return [sys.executable, "-m", "ray.scripts.scripts"]


def _environment() -> dict[str, str]:
    """This process's environment without what would point the nodes at another cluster."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith("RAY_") or key.startswith("RAY_AUTH_")
    }
    # Ray's nodes listen on the network, and whoever reaches one without a token can run code on it. A head turns
    # tokens on by itself when there is one, a further node does not: so it is said to all of them.
    return {"RAY_AUTH_MODE": "token", **kept, **PATIENCE, "OMP_NUM_THREADS": "1"}


def _make_token() -> None:
    """Have Ray write the user's token, where it always looks for it, unless there is one."""
    environment = _environment()
    given = any(key in environment for key in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if environment["RAY_AUTH_MODE"] == "token" and not given and not (Path.home() / ".ray" / "auth_token").exists():
        subprocess.run([*_ray(), "get-auth-token", "--generate"], env=environment, capture_output=True, check=True)


def _process(node: Node) -> psutil.Process | None:
    try:
        process = psutil.Process(node.pid)
        same = abs(process.create_time() - node.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _tree(node: Node) -> list[psutil.Process]:
    process = _process(node)
    if process is None:
        return []
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
