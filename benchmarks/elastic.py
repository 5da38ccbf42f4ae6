"""What does losing, draining or adding a node cost, and does the run stay the same?

    python benchmarks/elastic.py [--scenario kill] [--stage 1] [--quick] [--keep]

Each scenario trains one fp32 job on a several-node Ray cluster on this machine and compares it with one uninterrupted
worker: `max_loss_difference` over all steps, `missing` and `repeated` sequences of the epoch, `steps_lost`. Losses of
a node are timed from the kill to the next optimizer step, by phase; `recovery_over_floor` divides that by the floor,
a fresh process that imports what a worker imports and joins a group.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import arguments, finish, table
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import Action, Outcome, environment, run_alone, run_elastic

# Steps long enough for a node to join while they run.
ROWS, STEPS, SEQUENCES = 480, 40, 48
SCENARIOS: dict[str, list[Action]] = {
    "kill": [Action(8, "kill", workers=2)],
    "worker": [Action(8, "kill_worker", workers=2)],
    "freeze": [Action(8, "freeze", workers=2)],
    "drain": [Action(8, "drain", workers=2)],
    "grow": [Action(6, "add", workers=2)],
    "driver": [Action(12, "driver")],
    "all": [
        Action(6, "kill", workers=2),
        Action(9, "add", workers=1),
        Action(18, "drain", workers=2),
        Action(24, "driver", workers=1),
    ],
}
QUICK = ("kill",)
LOSSES = ("kill", "worker", "freeze")
FLOOR = """
import os, sys
os.environ["TORCHDYNAMO_DISABLE"] = "1"
import torch, deepspeed, ray.train, raylm.train.worker, raylm.train.engine, raylm.stream.loader
from transformers import LlamaForCausalLM
from raylm.train.group import Rendezvous, form_group
form_group(Rendezvous(address=sys.argv[1], rank=0, size=1, generation=1, timeout_seconds=60))
"""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--scenario", choices=[*SCENARIOS, "sizes"], action="append", help="only these")
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), default=1, help="ZeRO stage")
    options = parser.parse_args()
    wanted = options.scenario or (list(QUICK) if options.quick else [*SCENARIOS, "sizes"])
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="raylm-elastic-") as name:
        folder = Path(name)
        data = make_data(folder / "data", rows=ROWS)
        reference = run_alone(_job(folder, data, "reference", 1))
        for scenario in wanted:
            if scenario == "sizes":
                figures |= _sizes(folder, data, reference)
                continue
            job = _job(folder, data, scenario, options.stage)
            outcome = run_elastic(job, SCENARIOS[scenario], slots=2)
            figures[scenario] = {**compare(outcome, reference), **timing(outcome)}
            print(scenario, figures[scenario], flush=True)
        floor = median([floor_seconds() for _ in range(2 if options.quick else 5)])
    recoveries = [figures[one]["recovery_seconds"] for one in wanted if one in ("kill", "worker")]
    finish(
        "elastic",
        {
            "recovery_over_floor": round(median(recoveries) / floor, 2) if recoveries else None,
            "floor_seconds": round(floor, 2),
            "max_loss_difference": max(one["max_loss_difference"] for one in figures.values()),
            "missing": sum(one["missing"] for one in figures.values()),
            "repeated": sum(one["repeated"] for one in figures.values()),
            "steps_lost": {name: one["steps_lost"] for name, one in figures.items()},
            "scenarios": figures,
        },
        details={"zero_stage": options.stage, "steps": STEPS, "quick": options.quick},
        table=table(
            ["scenario", "sizes", "loss difference", "steps lost", "seconds to next step", "phases"],
            [
                [
                    name,
                    "→".join(map(str, one["sizes"])),
                    f"{one['max_loss_difference']:.1e}",
                    one["steps_lost"],
                    one.get("recovery_seconds", ""),
                    ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in one.get("phases", {}).items()),
                ]
                for name, one in figures.items()
            ],
        ),
        keep=options.keep,
    )


def _job(folder: Path, data: Path, name: str, stage: int, **changes: Any) -> Path:
    return write_job(
        folder,
        job_settings(folder / "runs", data, name=name, steps=STEPS, stage=stage, batch__sequences=SEQUENCES, **changes),
    )


def _sizes(folder: Path, data: Path, reference: Outcome) -> dict[str, dict[str, Any]]:
    """Without Ray: every stage at one to four workers."""
    found = {}
    for stage in (0, 1, 2, 3):
        for size in (1, 2, 3, 4):
            job = _job(folder, data, f"zero{stage}-{size}", stage, workers__max=4)
            found[f"zero{stage}-{size}"] = compare(run_alone(job, workers=size), reference)
            print(f"zero{stage}-{size}", found[f"zero{stage}-{size}"], flush=True)
    return found


def compare(outcome: Outcome, reference: Outcome) -> dict[str, Any]:
    """How far a run is from the reference, and what it did to the first epoch's sequences."""
    seen = Counter(row for line in outcome.audit for _, row, epoch in line["rows"] if epoch == 0)
    pairs = zip(outcome.losses, reference.losses, strict=True)
    return {
        "max_loss_difference": max(abs(ours - theirs) for ours, theirs in pairs),
        "missing": ROWS - len(seen),
        "repeated": sum(count - 1 for count in seen.values()),
        "same_audit": outcome.audit_table() == reference.audit_table(),
        "steps_lost": max((event.get("steps_lost", 0) for event in outcome.of("resumed")), default=0),
        "sizes": outcome.sizes,
    }


def timing(outcome: Outcome) -> dict[str, Any]:
    """Seconds from the first action to the next optimizer step of the group after it, by phase."""
    if not outcome.acts or not outcome.of("resumed"):
        return {}
    act = outcome.acts[0]
    resumed = next(event for event in outcome.of("resumed") if _at(event) > act["at"])
    step = next(line for line in outcome.metrics if line["attempt"] >= resumed["attempt"])
    phases = dict(resumed["phases"])
    noticed = _at(resumed) - resumed.get("since_loss_seconds", resumed["seconds"])
    return {
        "recovery_seconds": round(_at(step) - act["at"], 2),
        "phases": {
            "notice": round(noticed - act["at"], 2),
            **phases,
            "first_step": round(_at(step) - _at(resumed), 2),
        },
    }


def _at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def floor_seconds() -> float:
    """A fresh process that imports what a worker imports and joins a group."""
    from raylm.runtime.ports import free_port

    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", FLOOR, f"127.0.0.1:{free_port()}"],
        env={**environment(), "PYTHONPATH": str(Path.cwd())},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
