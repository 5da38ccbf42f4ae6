"""A worker that stalls writes down what it is doing."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raylm.config.job import Job
from raylm.coordination.contract import Generation, Member
from raylm.run.events import Stalled
from raylm.run.folder import RunFolder
from raylm.storage import StoragePath
from raylm.train import stalls
from raylm.train.context import Tenure


def wait_in_vain(ended: threading.Event) -> None:
    ended.wait(60)


def test_the_stacks_of_a_stalled_step_are_written_once(tmp_path: Path, monkeypatch: Any) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(stalls.time, "monotonic", lambda: clock.now)
    told: list[Any] = []
    job = Job.model_validate({"workers": {"stall_seconds": 30}})
    context: Any = SimpleNamespace(
        job=job,
        folder=RunFolder(StoragePath(str(tmp_path))),
        progress=SimpleNamespace(step=4),
        coordination=SimpleNamespace(report_event=lambda generation, event: told.append((generation, event))),
    )
    watch = stalls.StallWatch(context, Tenure(Member(1, 2, Generation(3), "host:1")), "10.0.0.7")
    ended = threading.Event()
    thread = threading.Thread(target=wait_in_vain, args=(ended,), name="raylm-generation-3")
    thread.start()
    try:
        watch.look()
        clock.now += 29
        watch.look()
        assert told == []
        clock.now += 2
        watch.look()
        clock.now += 100
        watch.look()
    finally:
        ended.set()
    ((generation, event),) = told
    assert generation == 3
    assert isinstance(event, Stalled)
    assert (event.step, event.rank, event.seconds) == (4, 1, 31.0)
    written = Path(event.stacks).read_text()
    assert written == (tmp_path / "stacks" / "generation-3-rank-1-step-4.txt").read_text()
    assert "raylm-generation-3" in written
    assert "wait_in_vain" in written
    context.progress.step = 5
    watch.look()
    clock.now += 31
    watch.look()
    assert len(told) == 2
