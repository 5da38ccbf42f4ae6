"""benchmarks/compare.py: two checkouts take turns, and what is compared are the rounds' own ratios."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import compared, flattened

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "compare.py"
BENCHMARK = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
turn = here.parent.parent / "turns"
turn.write_text((turn.read_text() if turn.exists() else "") + here.parent.name[0])
print("a table")
print(json.dumps({"speed": SPEED * len(turn.read_text()), "by": {"size": 2}, "fine": True, "asked": sys.argv[1:]}))
"""


def test_figures_are_numbers_under_dotted_names() -> None:
    assert flattened({"a": 1, "b": {"c": 2.5, "d": None}, "e": True, "f": "x"}) == {"a": 1.0, "b.c": 2.5}


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    before = [{"x": 1.0, "only": 1.0}, {"x": 2.0}, {"x": 10.0}]
    after = [{"x": 1.1}, {"x": 1.8}, {"x": 9.5}]
    (row,) = compared(before, after)
    assert (row.name, row.before, row.after) == ("x", 2.0, 1.8)
    assert (row.ratio, row.least, row.most) == pytest.approx((0.95, 0.9, 1.1))
    assert (row.before_spread, row.after_spread) == pytest.approx((10.0, 9.5 / 1.1))
    assert compared([{"x": 0.0}], [{"x": 1.0}])[0].ratio is None


def test_checkouts_take_turns_and_each_runs_its_own_benchmark(tmp_path: Path) -> None:
    for name, speed in (("before", 1), ("after", 2)):
        (tmp_path / name / "benchmarks").mkdir(parents=True)
        (tmp_path / name / "benchmarks" / "some.py").write_text(BENCHMARK.replace("SPEED", str(speed)))
    command = [sys.executable, str(SCRIPT), "--before", "before", "--after", "after", "--rounds", "3", "some.py", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (tmp_path / "turns").read_text() == "baabba"
    # Speeds before: 1, 4, 5; after: 4, 6, 12.
    assert json.loads(done.stdout.splitlines()[-1]) == {"speed": 2.4, "by.size": 1.0}
    assert '"asked"' not in done.stderr


def test_a_benchmark_that_fails_ends_the_comparison_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "some.py").write_text("raise SystemExit('no such thing')")
    command = [sys.executable, str(SCRIPT), "--before", ".", "--after", ".", "some.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode
    assert "no such thing" in done.stderr
