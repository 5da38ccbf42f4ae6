"""Whether host memory is enough for copies."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from raylm.checkpoint.room import available_bytes, lacking
from raylm.config.job import Job
from raylm.runtime import nodes
from raylm.testing.datasets import job_settings, make_data
from raylm.train.launch.preflight import memory_advice


def test_what_a_container_may_take_counts_where_it_is_less(tmp_path: Path) -> None:
    free = available_bytes(tmp_path)
    assert 0 < free <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_bytes(tmp_path) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) > 2000


@pytest.mark.parametrize(
    ("needed", "workers", "enough"), [(80, 1, True), (81, 1, False), (40, 2, True), (41, 2, False)]
)
def test_what_is_lacking_is_said_with_both_numbers(needed: int, workers: int, enough: bool) -> None:
    found = lacking(needed, 100, workers=workers)
    assert (found is None) == enough
    if found is not None:
        assert f"{needed * workers} B" in found
        assert "100 B is available" in found


@pytest.mark.parametrize(("memory", "warned"), [(10**6, True), (10**12, False)])
def test_nodes_with_too_little_memory_for_copies_are_named_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, warned: bool
) -> None:
    node = {"NodeID": "abcdef0123456789", "NodeManagerAddress": "10.0.0.7", "Resources": {"CPU": 4.0, "memory": memory}}
    monkeypatch.setattr(nodes, "usable_nodes", lambda: [node])
    settings = job_settings(tmp_path, make_data(tmp_path / "data", rows=16), name="run", steps=1)
    settings["workers"]["resources"] = {}
    advice = memory_advice(Job.model_validate(settings))
    assert (advice is not None) == warned
    if advice is not None:
        assert "10.0.0.7 (abcdef01)" in advice
        assert "for 3 workers" in advice, "4 fit, and 3 is the most"
        assert "976.6 KiB is available" in advice
