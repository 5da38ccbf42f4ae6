"""One driver a run: a second one is refused while the first lives, and takes over when it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from raylm.errors import TrainingError
from raylm.run.folder import RunFolder
from raylm.run.lease import Lease, _began
from raylm.storage import StoragePath


def holder(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write that another process trains in this folder."""
    import socket

    written = {"token": "theirs", "host": socket.gethostname(), "pid": 1, "began": 0.0, "heartbeat": 3, **changes}
    (folder / "driver.json").write_text(json.dumps(written))
    return written


def nobody_minds(by: str) -> None:
    raise AssertionError(by)


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        holder(tmp_path, pid=first.pid, began=_began(first.pid) or 0.0)
        with pytest.raises(TrainingError, match=f"is being trained already, by process {first.pid} on ") as found:
            Lease(RunFolder(StoragePath(str(tmp_path)))).acquire(nobody_minds)
        assert "stop that one first" in (found.value.hint or "")
    finally:
        first.kill()
        first.wait()
    Lease(RunFolder(StoragePath(str(tmp_path)))).acquire(nobody_minds)  # it was killed: no waiting on its own machine
    assert json.loads((tmp_path / "driver.json").read_text())["pid"] == os.getpid()


def test_another_process_with_the_number_of_a_dead_one_does_not_count(tmp_path: Path) -> None:
    holder(tmp_path, pid=os.getppid(), began=1.0)
    Lease(RunFolder(StoragePath(str(tmp_path)))).acquire(nobody_minds)


@pytest.mark.parametrize("beats", [True, False])
def test_on_another_machine_it_lives_if_it_says_so(tmp_path: Path, beats: bool) -> None:
    there = holder(tmp_path, host="elsewhere")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if beats and len(waited) == 4:
            holder(tmp_path, host="elsewhere", heartbeat=there["heartbeat"] + 1)

    lease = Lease(RunFolder(StoragePath(str(tmp_path))), sleep=sleep)
    if beats:
        with pytest.raises(TrainingError, match="process 1 on elsewhere"):
            lease.acquire(nobody_minds)
        assert len(waited) == 4
    else:
        lease.acquire(nobody_minds)
        assert sum(waited) == 15
        lease.release()


def test_whoever_is_replaced_is_told_and_leaves_the_others_file(tmp_path: Path) -> None:
    told = threading.Event()
    words: list[str] = []

    def lost(by: str) -> None:
        words.append(by)
        told.set()

    lease = Lease(RunFolder(StoragePath(str(tmp_path))), heartbeat_seconds=0.05)
    lease.acquire(lost)
    first = json.loads((tmp_path / "driver.json").read_text())
    written = holder(tmp_path, host="elsewhere")
    assert told.wait(10)
    lease.release()
    assert words == ["process 1 on elsewhere"]
    assert json.loads((tmp_path / "driver.json").read_text()) == written
    assert first["token"] != written["token"]


def test_it_beats_and_is_gone_afterwards(tmp_path: Path) -> None:
    lease = Lease(RunFolder(StoragePath(str(tmp_path))), heartbeat_seconds=0.02)
    lease.acquire(nobody_minds)
    seen = set()
    for _ in range(400):
        seen.add((tmp_path / "driver.json").read_text())
        if len(seen) > 2:
            break
        threading.Event().wait(0.01)
    assert len(seen) > 2
    lease.release()
    threading.Event().wait(0.1)
    assert not (tmp_path / "driver.json").exists()


def test_half_a_file_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "driver.json").write_text('{"token": "th')
    lease = Lease(RunFolder(StoragePath(str(tmp_path))))
    lease.acquire(nobody_minds)
    lease.release()


def test_a_second_run_of_one_process_is_refused_until_the_first_releases(tmp_path: Path) -> None:
    first, second = (Lease(RunFolder(StoragePath(str(tmp_path)))) for _ in range(2))
    first.acquire(nobody_minds)
    with pytest.raises(TrainingError, match=f"is being trained already, by process {os.getpid()} on "):
        second.acquire(nobody_minds)
    first.release()
    second.acquire(nobody_minds)
    second.release()
