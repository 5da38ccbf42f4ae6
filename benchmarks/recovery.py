"""How long until the next step is finished after a worker was killed, and how long do the others pause for a new one?

    python benchmarks/recovery.py [--stage 1] [--workers 2 3 4] [--parts 3] [--quick] [--keep]

For each number of workers, one run of the tiny model in fp32 on a cluster of one-worker nodes on this machine. Each
time all workers are in the group, one of them is killed; its node lives, so that another comes in its place. Every
rank is killed in every part of a step, some more often, as only the run's record says which rank it was. `kill_seconds`
is from the kill to the end of the first step of those that are left, `join_seconds` from the last step before a worker
joined to the first one after it; each holds a whole step.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import arguments, finish, table
from raylm.run.events import Resumed, WorkerLost
from raylm.run.folder import RunFolder
from raylm.run.log import read_events, read_metrics
from raylm.run.metrics import StepMetrics
from raylm.storage import StoragePath
from raylm.testing.cluster import Cluster
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Driver

PATIENCE_SECONDS = 240.0
MOST_TRIES = 4  # a rank is known once it was killed, so that some are killed more often than others


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), default=1, help="ZeRO stage")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--parts", type=int, default=3, help="of a step, in each of which every worker is killed")
    options = parser.parse_args()
    sizes, parts = ([3], 1) if options.quick else (options.workers, options.parts)
    rows, joins, contiguous = list[dict[str, Any]](), list[float](), True
    with tempfile.TemporaryDirectory(prefix="raylm-recovery-") as name:
        data = make_data(Path(name) / "data", rows=480)
        for workers in sizes:
            metrics = _killed(Path(name), data, options.stage, workers, parts, rows)
            joins += [after.at - before.at for before, after in pairwise(metrics) if after.workers > before.workers]
            contiguous &= [line.step for line in metrics] == list(range(1, len(metrics) + 1))
    columns = ["workers", "rank", "part", "seconds", "step", "steps_lost", "phases"]
    finish(
        f"recovery-zero{options.stage}",
        {
            "kills": len(rows),
            "kill_seconds": round(median(row["seconds"] for row in rows), 2),
            "kill_seconds_worst": round(max(row["seconds"] for row in rows), 2),
            "join_seconds": round(median(joins), 2) if joins else None,
            "join_seconds_worst": round(max(joins), 2) if joins else None,
            "steps_lost": max(row["steps_lost"] for row in rows),
            "contiguous": contiguous,
        },
        details={"zero_stage": options.stage, "workers": sizes, "parts": parts, "quick": options.quick},
        table=table(
            ["workers", "rank killed", "part of the step", "s to next step", "the step", "steps lost", "phases"],
            [[row[column] for column in columns] for row in rows],
        ),
        keep=options.keep,
    )


def _killed(
    folder: Path, data: Path, stage: int, workers: int, parts: int, rows: list[dict[str, Any]]
) -> list[StepMetrics]:
    """Kill every worker in every part of a step; each time adds a row. Every step of the run."""
    settings = job_settings(
        folder / "runs",
        data,
        name=f"run-{workers}",
        steps=100_000,
        stage=stage,
        workers__max=workers,
        optim__schedule="constant",
        evaluate__every_steps=1_000_000,
    )
    job, run = write_job(folder, settings), RunFolder(StoragePath(str(folder / "runs" / f"run-{workers}")))
    cluster = Cluster(workers)
    driver = Driver(job, cluster.address, job.with_suffix(".log"))
    driver.start()
    try:
        missing = {(rank, part) for rank in range(workers) for part in range(parts)}
        for number in range(MOST_TRIES * workers * parts):
            if not missing:
                break
            _, part = min(missing, key=lambda one: one[1])
            _wait(run, lambda line: line.workers == workers)
            time.sleep(2.0)
            before = read_metrics(run)[-1]
            line = _wait(run, lambda line, before=before: line.step > before.step)
            time.sleep((part + random.random()) / parts * line.step_seconds)
            victim = random.choice(cluster.processes("BodyActor"))
            at = time.time()
            victim.kill()
            after = _wait(run, lambda found, line=line: found.attempt > line.attempt and found.step > line.step, last=3)
            events = read_events(run)
            lost = [event for event in events if isinstance(event, WorkerLost)][-1]
            resumed = [event for event in events if isinstance(event, Resumed)][-1]
            missing.discard((lost.ranks[0], part))
            rows.append({"workers": workers, "rank": lost.ranks[0], "part": f"{part + 1} of {parts}"})
            rows[-1] |= _row(after, resumed, at)
            print(f"kill {number + 1}, {len(missing)} to go: {rows[-1]}", flush=True)
        _wait(run, lambda line: line.workers == workers)
        return read_metrics(run)
    finally:
        driver.kill()
        cluster.close()


def _row(after: StepMetrics, resumed: Resumed, killed_at: float) -> dict[str, Any]:
    return {
        "seconds": round(after.at - killed_at, 2),
        "step": round(after.step_seconds, 2),
        "steps_lost": resumed.steps_lost or 0,
        "phases": ", ".join(f"{name} {seconds:.2f}" for name, seconds in (resumed.phases or {}).items()),
    }


def _wait(run: RunFolder, wanted: Any, last: int = 1) -> StepMetrics:
    """The first of the last steps that is as wanted; TimeoutError after a while.

    last: how many of them are looked at, as a group may train a single one before somebody joins.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        lines = read_metrics(run) if run.metrics.exists() else []
        if found := [line for line in lines[-last:] if wanted(line)]:
            return found[0]
        time.sleep(0.02)
    raise TimeoutError(f"not within {PATIENCE_SECONDS:g} s in {run.url}")


if __name__ == "__main__":
    main()
