"""Published traces of spot machines, as changes of a set of nodes: files in, `Trace`s out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from random import Random

HOUR_SECONDS = 3600.0
# The step plot's own time is scaled; its file name says that it covers three days.
P2_SECONDS = 72 * HOUR_SECONDS


@dataclass(frozen=True)
class Change:
    """Nodes that came and went at one time."""

    seconds: float
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Changes in order of time; the first, at 0, adds the nodes that are there. `cloud` is aws or gcp."""

    name: str
    cloud: str
    seconds: float
    changes: tuple[Change, ...]

    @property
    def removals(self) -> int:
        """Moments at which nodes went."""
        return sum(1 for change in self.changes if change.removed)


def traces(folder: Path) -> Iterator[Trace]:
    """The seven traces below a folder laid out as bamboo's and Parcae's repositories are."""
    yield Trace("p3", "aws", *_of_events((folder / "bamboo" / "p3-trace.csv").read_text().splitlines()))
    yield Trace("gcp-a100", "gcp", *_of_counts("gcp-a100", _polls(folder / "bamboo" / "gcloud-a100x1-east1b.txt")))
    plot = folder / "bamboo" / "aws-p2-xlarge-2020-11-20-to-2020-11-23.csv"
    yield Trace("p2", "aws", *_of_counts("p2", _step_plot(plot)))
    for name in ("hh_55_65", "hl_15_25", "lh_80_90", "ll_10_11"):
        lines = (folder / "parcae" / f"gpt-1.5b_trace_{name}.txt").read_text().splitlines()
        yield Trace(f"parcae-{name[:2]}", "aws", *_of_intervals(lines))


def _of_events(lines: Iterable[str]) -> tuple[float, tuple[Change, ...]]:
    """`ms,add|remove,node` a line."""
    events = [line.split(",") for line in lines if line]
    changes = []
    for moment, group in groupby(events, key=lambda event: int(event[0])):
        at_once = list(group)
        added = tuple(node for _, what, node in at_once if what == "add")
        changes.append(Change(moment / 1000, added, tuple(node for _, what, node in at_once if what == "remove")))
    return changes[-1].seconds, tuple(changes)


def _of_intervals(lines: Iterable[str]) -> tuple[float, tuple[Change, ...]]:
    """`[ms, add|remove|no-op, {"nodes": [...], "duration": ms}]` a line."""
    changes, seconds = [], 0.0
    for line in lines:
        moment, what, detail = json.loads(line)
        nodes = tuple(detail["nodes"])
        seconds = (moment + detail["duration"]) / 1000
        if what == "add":
            changes.append(Change(moment / 1000, added=nodes))
        elif what == "remove":
            changes.append(Change(moment / 1000, removed=nodes))
    return seconds, tuple(changes)


def _of_counts(name: str, counts: Iterable[tuple[float, int]]) -> tuple[float, tuple[Change, ...]]:
    """Counts do not say which nodes went: any of those that were there, by a generator seeded with the name."""
    drawn, live, born, seconds = Random(name), list[str](), 0, 0.0
    changes = []
    for seconds, count in counts:
        added = tuple(f"{name}-{born + number}" for number in range(count - len(live)))
        removed = tuple(drawn.sample(live, len(live) - count)) if count < len(live) else ()
        born += len(added)
        live = [node for node in live if node not in removed] + list(added)
        if added or removed:
            changes.append(Change(seconds, added, removed))
    return seconds, tuple(changes)


def _polls(path: Path) -> Iterator[tuple[float, int]]:
    """`date, time, nodes` a line."""
    rows = [line.split(", ") for line in path.read_text().splitlines() if line]
    times = [datetime.fromisoformat(f"{day} {clock}") for day, clock, _ in rows]
    for moment, (_, _, count) in zip(times, rows, strict=True):
        yield (moment - times[0]).total_seconds(), int(count)


def _step_plot(path: Path) -> Iterator[tuple[float, int]]:
    """`scaled time,nodes` a line, two lines a step; times begin with the first node."""
    rows = [line.split(",") for line in path.read_text().splitlines() if line]
    scale = P2_SECONDS / float(rows[-1][0])
    begun = next(float(moment) for moment, count in rows if int(count))
    for moment, count in rows:
        if float(moment) >= begun:
            yield (float(moment) - begun) * scale, int(count)
