"""What every benchmark shares: what it ran on, medians of alternating runs, one line of JSON last, results on file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "pyarrow", "numpy")


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer repeats, smaller sizes")
    parser.add_argument("--save", action="store_true", help="write the figures under benchmarks/results/")
    return parser


def machine() -> dict[str, Any]:
    """Hardware, date and versions, without anything that names the host."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def alternate(rounds: int, **runs: Callable[[], float]) -> dict[str, list[float]]:
    """Each run once a round, in turns, the order reversed every other round; the figures by name."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            found[name].append(runs[name]())
    return found


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(statistics.median(values))


def finish(
    name: str, figures: Mapping[str, Any], *, started_on: Mapping[str, Any], quick: bool, save: bool = False
) -> None:
    """Print the figures as the last line, and keep those of a full run that was asked to be kept."""
    line = {"benchmark": name, "quick": quick, **figures}
    if save and not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps({**line, "machine": dict(started_on)}, indent=1) + "\n")
    print(json.dumps(line))
