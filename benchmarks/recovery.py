"""How long until the next step is finished after a worker was killed, and how long do the others pause for a new one?

    python benchmarks/recovery.py [--stage 1] [--workers 3] [--kills 10] [--quick] [--keep]

One run of the tiny model in fp32 on a cluster of one-worker nodes on this machine. Each time all workers are in the
group, one of them, by chance, is killed at some moment of a step; its node lives, so that another comes in its place.
`kill_seconds` is from the kill to the end of the first step of those that are left, `join_seconds` from the last step
before a worker joined to the first one after it; each holds a whole step.
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
from raylm.run.events import Resumed
from raylm.run.folder import RunFolder
from raylm.run.log import read_events, read_metrics
from raylm.run.metrics import StepMetrics
from raylm.storage import StoragePath
from raylm.testing.cluster import Cluster
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Driver

PATIENCE_SECONDS = 240.0


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), default=1, help="ZeRO stage")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    kills = 2 if options.quick else options.kills
    with tempfile.TemporaryDirectory(prefix="raylm-recovery-") as name:
        folder = Path(name)
        settings = job_settings(
            folder / "runs",
            make_data(folder / "data", rows=480),
            name="run",
            steps=100_000,
            stage=options.stage,
            workers__max=options.workers,
            optim__schedule="constant",
            evaluate__every_steps=1_000_000,
        )
        rows, metrics = _killed(
            write_job(folder, settings), RunFolder(StoragePath(str(folder / "runs" / "run"))), options.workers, kills
        )
    joins = [after.at - before.at for before, after in pairwise(metrics) if after.workers > before.workers]
    finish(
        f"recovery-zero{options.stage}",
        {
            "kill_seconds": round(median(row["seconds"] for row in rows), 2),
            "kill_seconds_worst": round(max(row["seconds"] for row in rows), 2),
            "join_seconds": round(median(joins), 2) if joins else None,
            "steps_lost": max(row["steps_lost"] for row in rows),
            "contiguous": [line.step for line in metrics] == list(range(1, len(metrics) + 1)),
        },
        details={"zero_stage": options.stage, "workers": options.workers, "kills": kills, "quick": options.quick},
        table=table(
            ["seconds to next step", "the step itself", "steps lost", "phases"],
            [[row["seconds"], row["step"], row["steps_lost"], row["phases"]] for row in rows],
        ),
        keep=options.keep,
    )


def _killed(job: Path, run: RunFolder, workers: int, kills: int) -> tuple[list[dict[str, Any]], list[StepMetrics]]:
    """Kill a worker so many times; what each time took, and every step of the run."""
    cluster = Cluster(workers)
    driver = Driver(job, cluster.address, job.with_suffix(".log"))
    driver.start()
    rows = []
    try:
        for number in range(kills):
            _wait(run, lambda line: line.workers == workers)
            time.sleep(random.uniform(1.0, 2.0))  # at whatever moment of a step
            victim = random.choice(cluster.processes("BodyActor"))
            before, at = read_metrics(run)[-1].step, time.time()
            victim.kill()
            after = _wait(run, lambda line, before=before: line.workers < workers and line.step > before)
            resumed = [event for event in read_events(run) if isinstance(event, Resumed)][-1]
            rows.append(_row(after, resumed, at))
            print(f"kill {number + 1} of {kills}: {rows[-1]}", flush=True)
        _wait(run, lambda line: line.workers == workers)
        return rows, read_metrics(run)
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


def _wait(run: RunFolder, wanted: Any) -> StepMetrics:
    """The newest step, once it is as wanted; TimeoutError after a while."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        lines = read_metrics(run) if run.metrics.exists() else []
        if lines and wanted(lines[-1]):
            return lines[-1]
        time.sleep(0.05)
    raise TimeoutError(f"not within {PATIENCE_SECONDS:g} s in {run.url}")


if __name__ == "__main__":
    main()
