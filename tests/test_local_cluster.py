"""Several Ray nodes on one machine: what is started is ended, and nothing else is."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raylm.deploy.local import LocalCluster, Node, NodeShape
from raylm.errors import ClusterError, ConfigError


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own folders are too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


def sleeper(name: str) -> tuple[subprocess.Popen[bytes], Node]:
    """A process that stands for a node, with a child of its own."""
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = subprocess.Popen([sys.executable, "-c", f"{code}; print(1, flush=True); time.sleep(60)"], stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    return process, Node(name, process.pid, psutil.Process(process.pid).create_time())


def state(folder: Path, *nodes: Node) -> LocalCluster:
    written = {"address": "127.0.0.1:1", "nodes": [vars(node) for node in nodes]}
    (folder / "cluster.json").write_text(json.dumps(written))
    return LocalCluster(folder)


def test_killing_a_node_ends_all_that_runs_on_it_and_nothing_else(folder: Path) -> None:
    (one, first), (other, second) = sleeper("node-1"), sleeper("node-2")
    children = psutil.Process(one.pid).children()
    cluster = state(folder, first, second)
    cluster.kill("node-1")
    assert one.wait(10) == -9
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert [node.name for node in cluster.alive()] == ["node-2"]
    cluster.down()
    assert other.wait(10) is not None
    assert not (folder / "cluster.json").exists()


def test_a_process_that_took_over_a_dead_nodes_number_is_left_alone(folder: Path) -> None:
    process, node = sleeper("node-1")
    cluster = state(folder, Node("node-1", node.pid, node.started - 1000))
    assert cluster.alive() == []
    with pytest.raises(ConfigError, match="no living node 'node-1'"):
        cluster.kill("node-1")
    cluster.down()
    assert process.poll() is None
    psutil.Process(process.pid).children()[0].kill()
    process.kill()
    process.wait()


def test_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no cluster in") as caught:
        LocalCluster(folder).down()
    assert caught.value.hint == "start one first"
    process, node = sleeper("node-1")
    cluster = state(folder, node)
    with pytest.raises(ConfigError, match="no living node 'node-7'") as caught:
        cluster.kill("node-7")
    assert caught.value.hint == "living nodes: node-1"
    with pytest.raises(ConfigError, match="a cluster is running in"):
        cluster.up(1, head=NodeShape(), each=NodeShape())
    with pytest.raises(ConfigError, match="too long a path for Ray's sockets"):
        LocalCluster(folder / ("x" * 60)).up(1, head=NodeShape(), each=NodeShape())
    cluster.down()
    process.wait(10)


def test_without_its_head_a_cluster_takes_no_node_and_no_notice_and_can_be_taken_down(folder: Path) -> None:
    (head, first), (other, second) = sleeper("head"), sleeper("node-1")
    cluster = state(folder, first, second)
    cluster.kill("head")
    head.wait(10)
    began = time.monotonic()
    for ask in (lambda: cluster.add(1, NodeShape()), lambda: cluster.drain("node-1", 30)):
        with pytest.raises(ClusterError, match=r"the head of the cluster in .* is gone") as caught:
            ask()
        assert "raylm cluster down" in str(caught.value.hint)
    assert time.monotonic() - began < 5
    assert cluster.nodes() == [first, second]
    cluster.down()
    assert other.wait(10) is not None


@pytest.mark.long
def test_nodes_come_are_drained_are_lost_and_come_back(folder: Path) -> None:
    script = [sys.executable, "-m", "raylm.cli.main", "cluster", "--folder", str(folder)]

    def say(*words: str) -> str:
        done = subprocess.run([*script, *words], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "address: 127.0.0.1:" in say("up", "--nodes", "1")
    try:
        assert say("drain", "node-1", "--seconds", "20") == "draining: node-1, deadline in 20 s\n"
        say("kill", "node-1")
        assert say("add") == "added: node-2\n"
        assert [line.split()[1] for line in say("status").splitlines()[1:]] == ["up", "gone", "up"]
    finally:
        assert say("down") == "down\n"
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(folder) in str(process.info["cmdline"])]


@pytest.mark.long
def test_the_quickstart_loses_a_node_and_finishes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raylm.cli.main", "quickstart", "--storage", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "quickstart"
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "worker_lost" in events
    assert "resized" in events
    assert events[-1] == "finished"
    assert losses[-1] < losses[0] - 1
    assert (run / "report.html").exists()
