"""What does Ray cost a step? The same job, once under torchrun without Ray and once as `raylm train` runs it.

    python benchmarks/ray_tax.py [--quick] [--keep]

Runs take turns: torchrun with threads that read the shards, then Ray with threads, then Ray with Ray Data (the
default). Each takes a few steps of llama-25m on two workers of this machine; the first ones, in which caches fill and
Ray Data starts, do not count. `ray_step_ratio` and `ray_data_step_ratio` are tokens a second of the runs under Ray over
those without, the median of the rounds, from the median step of each run; on a machine whose cores are all taken by
workers, whatever Ray does beside them shows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import arguments, finish, table
from benchmarks.step import Case, write_shards
from raylm.testing.datasets import job_settings, write_job
from raylm.testing.elastic import DRIVER, environment, read_outcome, run_alone

KINDS = {"torchrun, threads": None, "Ray, threads": "threads", "Ray, Ray Data": "ray"}
WORKERS, UNCOUNTED = 2, 4


def main() -> None:
    """Run in turns, compare, report."""
    options = arguments(__doc__ or "").parse_args()
    rounds, steps, length = (1, 10, 64) if options.quick else (3, 24, 128)
    case = Case("llama-25m", "fp32", 1, 8, 2, length, 8192, rounds, 1)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="raylm-tax-") as name:
        folder = Path(name)
        write_shards(folder / "data", case)
        for number in range(rounds):
            order = list(KINDS) if number % 2 == 0 else list(reversed(KINDS))
            for kind in order:
                job = _job(folder, case, f"{kind.replace(', ', '-').replace(' ', '-')}-{number}", steps, KINDS[kind])
                seconds[kind].append(_step_seconds(job, with_ray=KINDS[kind] is not None))
                print(f"round {number + 1} of {rounds}: {kind}: {seconds[kind][-1]:.3f} s a step", file=sys.stderr)
    without = seconds["torchrun, threads"]
    ratios = {kind: [base / one for base, one in zip(without, seconds[kind], strict=True)] for kind in KINDS}
    tokens = case.sequences * case.length
    finish(
        "ray-tax",
        {
            "ray_step_ratio": round(median(ratios["Ray, threads"]), 3),
            "ray_data_step_ratio": round(median(ratios["Ray, Ray Data"]), 3),
        },
        details={"step_seconds": seconds, "ratios": ratios, "steps": steps, "workers": WORKERS},
        table=table(
            ["run by", "tokens/s", "ms a step", "ratio: median", "least to most of the rounds"],
            [
                [
                    kind,
                    f"{tokens / median(taken):.0f}",
                    f"{median(taken) * 1000:.0f}",
                    f"{median(ratios[kind]):.3f}",
                    f"{min(ratios[kind]):.3f} to {max(ratios[kind]):.3f}",
                ]
                for kind, taken in seconds.items()
            ],
        ),
        keep=options.keep,
    )


def _job(folder: Path, case: Case, name: str, steps: int, deliver: str | None) -> Path:
    changes: dict[str, Any] = {
        "model": {"preset": case.preset, "dtype": case.dtype},
        "batch": {"sequences": case.sequences, "micro_batch": case.micro_batch},
        "train": {"steps": steps, "seed": 7},
        "workers": {"min": WORKERS, "max": WORKERS, "gpu": False},
        "checkpoint": {"every_steps": steps},
        "evaluate": {},
    }
    settings = job_settings(folder / "runs", folder / "data", name=name, steps=steps, stage=case.stage, **changes)
    settings["data"] = {"path": str(folder / "data"), "reader": deliver or "threads"}
    return write_job(folder, settings)


def _step_seconds(job: Path, *, with_ray: bool) -> float:
    """The median of the counted steps of a whole run."""
    if with_ray:
        env = {key: value for key, value in environment().items() if key != "RAY_AUTH_MODE"}
        done = subprocess.run([*DRIVER, "train", str(job)], env=env, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise RuntimeError(f"raylm train gave {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        outcome = read_outcome(job.parent / "runs" / job.stem)
    else:
        outcome = run_alone(job, workers=WORKERS, timeout_seconds=600)
    return median(line["step_seconds"] for line in outcome.metrics[UNCOUNTED:])


if __name__ == "__main__":
    main()
