"""What do copies of the state in host memory cost a step?

    python benchmarks/copies.py [--workers 3] [--steps 60] [--quick] [--keep]

Runs without Ray on this machine, with two models and steps of more than half a second; copies are made as often as
their measured cost allows. `copy_share_of_step` is what copying held rank 0 up for, over the seconds of the steps, both
summed after the first copies were measured; the figure is that of the model with the larger share.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import arguments, finish, table
from raylm.testing.datasets import job_settings, make_data, write_job
from raylm.testing.elastic import run_alone

# Copies of the first steps are measured, and decide how often the later ones are made.
MEASURING = 10
MIDDLE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
}
CASES: dict[str, dict[str, Any]] = {
    "tiny": {"batch__sequences": 96, "batch__micro_batch": 8},
    "14 M parameters": {"model": {"config": MIDDLE, "dtype": "fp32"}, "batch__sequences": 24, "batch__micro_batch": 8},
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    steps = 24 if options.quick else options.steps
    rows = [_measured(name, changes, options.workers, steps) for name, changes in CASES.items()]
    finish(
        "copies",
        {
            "copy_share_of_step": max(row["share"] for row in rows),
            "step_seconds_least": min(row["step"] for row in rows),
        },
        details={"workers": options.workers, "steps": steps, "quick": options.quick},
        table=table(
            ["model", "seconds a step", "a copy holds it up for", "copied after steps", "share"],
            [[row["name"], row["step"], row["copy"], row["copied"], row["share"]] for row in rows],
        ),
        keep=options.keep,
    )


def _measured(name: str, changes: dict[str, Any], workers: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="raylm-copies-") as folder:
        data = make_data(Path(folder) / "data", rows=480)
        quiet = {"checkpoint__every_steps": steps, "evaluate__every_steps": 10 * steps, "workers__max": workers}
        job = job_settings(Path(folder) / "runs", data, name="run", steps=steps, **quiet, **changes)
        lines = run_alone(write_job(Path(folder), job), workers=workers, timeout_seconds=1800).metrics[MEASURING:]
    stepping = sum(line["step_seconds"] for line in lines)
    copies = [line["copy_seconds"] for line in lines if line["copy_seconds"] > 1e-3]
    return {
        "name": name,
        "step": round(median(line["step_seconds"] for line in lines), 3),
        "copy": round(median(copies), 3) if copies else 0.0,
        "copied": f"{len(copies)} of {len(lines)}",
        "share": round(sum(line["copy_seconds"] for line in lines) / stepping, 4),
    }


if __name__ == "__main__":
    main()
