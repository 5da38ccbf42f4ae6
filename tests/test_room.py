"""Whether host memory is enough for copies."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from raylm.checkpoint.room import available_bytes, lacking


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
