"""Partitions of a real network: bodies in network namespaces behind a bridge whose ports are cut."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raylm.config.load import load_job
from raylm.run.events import Warned, WorkerLost
from raylm.run.log import read_events, read_metrics
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Outcome, read_outcome, run_alone
from raylm.testing.processes import Machine, ProcessRun, running, wait_for

GLOO = ("env", "GLOO_SOCKET_IFNAME=eth0")  # this machine's name leads to its loopback
pytestmark = [pytest.mark.sweep, pytest.mark.timeout(600)]


def ip(*words: str, check: bool = True) -> int:
    return subprocess.run(["ip", *words], check=check, capture_output=True).returncode


@dataclass(frozen=True)
class Network:
    """A bridge at `host` and three namespaces behind it."""

    name: str
    net: str

    @property
    def host(self) -> str:
        return f"{self.net}.1"

    def machines(self) -> list[Machine]:
        return [
            Machine(f"m{number}", f"{self.net}.{10 + number}", ("ip", "netns", "exec", self.space(number), *GLOO))
            for number in range(3)
        ]

    def space(self, number: int) -> str:
        return f"{self.name}-{number}"

    def port(self, number: int) -> str:
        return f"{self.name}v{number}"

    def part(self, *numbers: int, parted: bool = True) -> None:
        """These do not reach each other, and everybody else does."""
        for number in numbers:
            ip("link", "set", self.port(number), "type", "bridge_slave", "isolated", "on" if parted else "off")

    def unplug(self, number: int, *, unplugged: bool = True) -> None:
        """Nobody reaches this one."""
        ip("link", "set", self.port(number), "down" if unplugged else "up")


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and the command ip")
    made = Network(f"rl{secrets.token_hex(2)}", f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(250)}")
    try:
        if ip("link", "add", made.name, "type", "bridge", check=False):
            pytest.skip("no bridge can be made here")
        ip("addr", "add", f"{made.host}/24", "dev", made.name)
        ip("link", "set", made.name, "up")
        for number, machine in enumerate(made.machines()):
            space = made.space(number)
            ip("netns", "add", space)
            ip("link", "add", made.port(number), "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", made.port(number), "master", made.name, "up")
            ip("-n", space, "addr", "add", f"{machine.host}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield made
    finally:
        for number in range(3):
            ip("netns", "del", made.space(number), check=False)
        ip("link", "del", made.name, check=False)


def sizes(run: ProcessRun) -> int:
    lines = read_metrics(run.folder)
    return lines[-1].workers if lines else 0


def steps_further(run: ProcessRun, count: int = 3) -> None:
    step = run.hub.status().step
    wait_for(lambda: run.hub.status().step >= step + count)


def stopped(run: ProcessRun) -> Outcome:
    """What the run says once it was stopped."""
    run.hub.request_stop()
    wait_for(lambda: run.hub.status().ended)
    run.hub.flush()
    return read_outcome(Path(run.folder.path.local_path()))


def settings_of(folder: Path, stage: int) -> dict[str, object]:
    data = make_data(folder / "data", rows=480)
    settings = job_settings(
        folder / "runs",
        data,
        name="run",
        steps=5000,
        stage=stage,
        optim__schedule="constant",
        evaluate__every_steps=9999,
    )
    # Each step: on a busy machine copies are dear, and then made less often.
    settings["workers"] |= {"silence_seconds": 3.0, "resources": {}, "copy_every_steps": 1}
    return settings


def assert_exact(folder: Path, settings: dict[str, object], outcome: Outcome) -> None:
    """Step by step what one worker trains that nothing happens to."""
    steps = len(outcome.metrics)
    assert [line["step"] for line in outcome.metrics] == list(range(1, steps + 1))
    alone = run_alone(write_job(folder, {**settings, "name": "alone", "train": {**settings["train"], "steps": steps}}))  # type: ignore[dict-item]
    assert outcome.audit_table() == alone.audit_table()
    assert max(abs(one - other) for one, other in zip(outcome.losses, alone.losses, strict=True)) < 1e-4


@pytest.mark.parametrize("stage", [1, 3])
def test_two_workers_that_do_not_reach_each_other_cost_one_of_them_until_they_do(
    tmp_path: Path, network: Network, stage: int
) -> None:
    settings = settings_of(tmp_path, stage)
    with running(load_job(write_job(tmp_path, settings)), network.machines(), host=network.host) as run:
        wait_for(lambda: sizes(run) == 3)
        steps_further(run)
        network.part(0, 2)
        seconds = wait_for(lambda: sizes(run) == 2)
        assert seconds < 25, "a standstill of ten seconds, and the check"
        steps_further(run)
        network.part(0, 2, parted=False)
        wait_for(lambda: sizes(run) == 3, 90)
        steps_further(run)
        outcome = stopped(run)
        messages = [event.message for event in read_events(run.folder) if isinstance(event, Warned)]
    assert any("the network is parted" in message for message in messages), messages
    assert any("reach the others again" in message for message in messages), messages
    assert not outcome.of("worker_lost")
    assert_exact(tmp_path, settings, outcome)


def test_a_worker_that_nobody_reaches_is_lost_and_ends_itself_and_another_takes_its_place(
    tmp_path: Path, network: Network
) -> None:
    settings = settings_of(tmp_path, 2)
    with running(load_job(write_job(tmp_path, settings)), network.machines(), host=network.host) as run:
        wait_for(lambda: sizes(run) == 3)
        steps_further(run)
        lost = run.cluster.process("m1")
        network.unplug(1)
        assert wait_for(lambda: sizes(run) == 2) < 15
        assert wait_for(lambda: lost.poll() is not None) < 20, "it hears nobody, and ends"
        steps_further(run)
        network.unplug(1, unplugged=False)
        wait_for(lambda: sizes(run) == 3, 90)
        steps_further(run)
        outcome = stopped(run)
        events = read_events(run.folder)
    assert next(event.message for event in events if isinstance(event, WorkerLost)).startswith("lost: silent")
    assert sum(line["steps_lost"] or 0 for line in outcome.of("resumed")) == 0
    assert_exact(tmp_path, settings, outcome)


def test_a_moment_without_a_network_costs_nothing(tmp_path: Path, network: Network) -> None:
    settings = settings_of(tmp_path, 1)
    with running(load_job(write_job(tmp_path, settings)), network.machines(), host=network.host) as run:
        wait_for(lambda: sizes(run) == 3)
        steps_further(run)
        for number in range(3):
            network.unplug(number)
        with pytest.raises(TimeoutError):
            wait_for(lambda: False, 1.0)
        for number in range(3):
            network.unplug(number, unplugged=False)
        steps_further(run, 10)
        outcome = stopped(run)
    assert not outcome.of("worker_lost")
    assert len(outcome.of("resumed")) == 0
    assert_exact(tmp_path, settings, outcome)
