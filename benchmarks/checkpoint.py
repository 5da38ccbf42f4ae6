"""How long does a checkpoint hold training up, how big is it, and how soon does another number of workers go on?

raylm against DeepSpeed's own way for the same model: save_checkpoint at 2 workers, ds_to_universal, load_universal at
3. Times are medians, in seconds, on local disk; imports and building engines are left out on both sides. raylm's files
carry checksums and are flushed to disk before they count, DeepSpeed's are left in the page cache.

    python benchmarks/checkpoint.py [--quick] [--stage 1] [--repeats 3] [--s3] [--keep]

With --s3 raylm's saves and loads are also timed against SeaweedFS, a real object store, on this machine.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import arguments, finish, table  # noqa: E402
from raylm.testing.ranks import Ranks, ranks  # noqa: E402

if TYPE_CHECKING:
    from raylm.storage import StoragePath
    from raylm.train.engine import Engine
    from raylm.train.group import Group

SAVED_AT, RESUMED_AT = 2, 3
VOCABULARY = 16384
TAG = "step"
CONVERT = """
import argparse, json, sys, time
from deepspeed.checkpoint import ds_to_universal
sys.argv = ["ds_to_universal", *sys.argv[1:]]
began = time.perf_counter()
ds_to_universal.main(ds_to_universal.parse_arguments())
print("seconds", time.perf_counter() - began)
"""


def build(group: Group, preset: str, stage: int, *, universal: bool = False, seed: int = 1) -> Engine:
    """An engine in bf16 that has taken no step; universal adds DeepSpeed's setting for loading such a checkpoint."""
    from raylm.config.model import ModelSettings
    from raylm.config.optim import OptimSettings, ZeroSettings
    from raylm.model.build import build_model
    from raylm.objectives.causal import Causal
    from raylm.train.engine import Engine, EngineSettings

    settings = ModelSettings(preset=preset)
    model = build_model(settings, vocab_size=VOCABULARY, sequence_length=64, seed=seed)
    overrides = {"checkpoint": {"load_universal": True}} if universal else {}
    zero = ZeroSettings(stage=stage)  # type: ignore[arg-type]
    return Engine.build(model, group, Causal(), EngineSettings(zero, OptimSettings(), 1, 1, overrides=overrides))


def step(engine: Engine, number: int) -> None:
    """One optimizer step on very little, so that there is state to save."""
    import numpy as np

    from raylm.records import MicroBatch

    tokens = np.random.default_rng([number, engine.group.rank]).integers(0, VOCABULARY, (1, 16))
    batch = MicroBatch(engine.group.rank, tokens, tokens, (np.zeros(1, np.int32),), np.zeros(1, int), np.zeros(1, int))
    engine.step([batch], step=number, seed=0, global_weight=15 * engine.group.size, lr=1e-3)


def together(group: Group) -> None:
    """Wait for the other ranks, so that a clock started now measures the work and not their delay."""
    group.barrier()


def slowest(group: Group, seconds: float) -> float:
    """The longest of the ranks' times."""
    mine = [seconds if rank == group.rank else 0.0 for rank in range(group.size)]
    return max(group.all_reduce_sum(mine))


def digest(engine: Engine) -> list[float]:
    """Sums over all ranks of what they own, by kind: equal when the state is the same."""
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.chunks import KINDS

    sums = dict.fromkeys(KINDS, 0.0)
    for chunk, tensor in zero_state.state_to_save(engine.raw):
        sums[chunk.kind] += float(tensor.double().square().sum())
    return engine.group.all_reduce_sum(list(sums.values()))


def save(group: Group, preset: str, stage: int, folder: str, repeats: int, place: StoragePath) -> dict[str, Any]:
    """Save in each of the three ways in turn, as often as asked, after a first time that allocates the buffers."""
    engine = build(group, preset, stage)
    step(engine, 0)
    totals: list[float] = []

    def theirs(turn: int) -> float:
        began = time.perf_counter()
        engine.raw.save_checkpoint(f"{folder}/deepspeed", tag=TAG)
        return time.perf_counter() - began

    def ours(turn: int, *, asynchronous: bool) -> float:
        stall, total = save_ours(engine, place, 1 + 2 * turn + asynchronous, asynchronous=asynchronous)
        if asynchronous:
            totals.append(slowest(group, total))
        return stall

    ways: dict[str, Callable[[int], float]] = {
        "save_synchronous": functools.partial(ours, asynchronous=False),
        "stall_asynchronous": functools.partial(ours, asynchronous=True),
    }
    if folder:
        ways["save_deepspeed"] = theirs
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            together(group)
            took = slowest(group, way(turn))
            if turn:
                times[name].append(took)
    times["save_asynchronous_total"] = totals[1:]
    result = {"times": times, "digest": digest(engine), "parameters": sum(_sizes(engine))}
    engine.destroy()
    return result


def save_ours(engine: Engine, place: StoragePath, number: int, *, asynchronous: bool) -> tuple[float, float]:
    """Seconds that one save held the caller up, and seconds until it had ended."""
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.save import SaveRequest, begin_save
    from raylm.testing.checkpoints import run_state

    group = engine.group
    began = time.perf_counter()
    pending = begin_save(
        SaveRequest(
            place,
            run_state(number),
            fence=0,
            rank=group.rank,
            world_size=group.size,
            scalars=zero_state.scalars(engine.raw),
        ),
        zero_state.state_to_save(engine.raw),
        asynchronous=asynchronous,
    )
    stall = time.perf_counter() - began
    return stall, pending.wait(600).total_seconds


def _sizes(engine: Engine) -> Sequence[int]:
    return [getattr(p, "ds_numel", p.numel()) for p in engine.model.parameters()]


def load_theirs(group: Group, preset: str, stage: int, folder: str) -> tuple[float, list[float]]:
    """load_universal into a fresh engine."""
    engine = build(group, preset, stage, universal=True, seed=2)
    together(group)
    began = time.perf_counter()
    engine.raw.load_checkpoint(f"{folder}/deepspeed", tag=f"{TAG}_universal")
    together(group)
    took = slowest(group, time.perf_counter() - began)
    found = digest(engine)
    engine.destroy()
    return took, found


def load_ours(
    group: Group, preset: str, stage: int, place: StoragePath, repeats: int
) -> tuple[list[float], list[float]]:
    """Find the newest checkpoint and go on from it, into a fresh engine each time."""
    from raylm.checkpoint import zero_state
    from raylm.checkpoint.restore import fill, newest, open_checkpoint

    times, found = [], []
    for _ in range(repeats):
        engine = build(group, preset, stage, seed=2)
        together(group)
        began = time.perf_counter()
        latest = newest(place)
        assert latest is not None
        fill(open_checkpoint(latest), zero_state.state_to_fill(engine.raw))
        zero_state.after_fill(engine.raw, latest.scalars)
        together(group)
        times.append(slowest(group, time.perf_counter() - began))
        found = digest(engine)
        engine.destroy()
    return times, found


def convert(folder: str) -> float:
    """Seconds of DeepSpeed's ds_to_universal, without starting Python and importing."""
    command = [sys.executable, "-c", CONVERT, "--input_folder", f"{folder}/deepspeed/{TAG}"]
    command += ["--output_folder", f"{folder}/deepspeed/{TAG}_universal", "--inject_missing_state"]
    command += ["--num_extract_workers", "2", "--num_merge_workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode:
        raise SystemExit(f"ds_to_universal failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return float(next(line for line in done.stdout.splitlines() if line.startswith("seconds ")).split()[1])


def bytes_in(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def close(first: Sequence[float], second: Sequence[float]) -> bool:
    """Are two digests of the same state? The order of sums differs with the number of workers."""
    return all(abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1e-30) for a, b in zip(first, second, strict=True))


def measure(pool: Ranks, preset: str, stage: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Everything for one ZeRO stage on local disk."""
    from raylm.storage import StoragePath

    where, place = str(folder), StoragePath(str(folder)) / "raylm"
    saved = pool.run(save, SAVED_AT, preset, stage, where, repeats, place, seconds=1800)[0]
    times = {name: statistics.median(values) for name, values in saved["times"].items()}
    ours_bytes = bytes_in(next(iter(sorted((folder / "raylm").glob("step-*")))))
    theirs_bytes = bytes_in(folder / "deepspeed" / TAG)
    times["convert_deepspeed"] = convert(where)
    universal_bytes = bytes_in(folder / "deepspeed" / f"{TAG}_universal")
    times["load_deepspeed"], theirs = pool.run(load_theirs, RESUMED_AT, preset, stage, where, seconds=1800)[0]
    times["load_raylm"] = resume(pool, preset, stage, place, repeats, saved["digest"])
    parameters = saved["parameters"]
    return {
        "stage": stage,
        "parameters": parameters,
        "seconds": {name: round(value, 3) for name, value in times.items()},
        "bytes_per_parameter": round(ours_bytes / parameters, 2),
        "bytes_per_parameter_deepspeed": round(theirs_bytes / parameters, 2),
        "bytes_per_parameter_universal": round(universal_bytes / parameters, 2),
        "deepspeed_restores_the_same": close(theirs, saved["digest"]),
        "resume_other_size_speedup": round(
            (times["convert_deepspeed"] + times["load_deepspeed"]) / times["load_raylm"], 2
        ),
        "async_stall_ratio": round(times["stall_asynchronous"] / times["save_synchronous"], 3),
    }


def measure_s3(pool: Ranks, preset: str, stage: int, repeats: int) -> dict[str, Any]:
    """raylm's part again, to and from an S3 server."""
    from raylm.testing.servers import seaweed

    with tempfile.TemporaryDirectory(prefix="raylm-seaweed-") as folder, seaweed(Path(folder)) as server:
        place = server.bucket() / "raylm"
        saved = pool.run(save, SAVED_AT, preset, stage, "", repeats, place, seconds=1800)[0]
        times = {f"s3_{name}": statistics.median(values) for name, values in saved["times"].items()}
        times["s3_load_raylm"] = resume(pool, preset, stage, place, repeats, saved["digest"])
    return {"stage": stage, "seconds": {name: round(value, 3) for name, value in times.items()}}


def resume(pool: Ranks, preset: str, stage: int, place: StoragePath, repeats: int, expected: Sequence[float]) -> float:
    """Median seconds of raylm's load at another number of workers, which must give what was saved."""
    loads, found = pool.run(load_ours, RESUMED_AT, preset, stage, place, repeats, seconds=1800)[0]
    if not close(found, expected):
        raise SystemExit(f"what raylm loaded is not what was saved: {found} and {expected}")
    return statistics.median(loads)


def rows(result: dict[str, Any]) -> list[list[Any]]:
    """A table's lines for one stage."""
    seconds, stage = result["seconds"], f"ZeRO-{result['stage']}"
    if "s3_load_raylm" in seconds:
        stall, total = seconds["s3_stall_asynchronous"], seconds["s3_save_asynchronous_total"]
        return [
            [f"{stage}, S3", "save, waiting for it (s)", "", seconds["s3_save_synchronous"]],
            [f"{stage}, S3", "asynchronous: stall (s); committed after (s)", "", f"{stall}; {total}"],
            [f"{stage}, S3", f"resume at {RESUMED_AT} workers (s)", "", seconds["s3_load_raylm"]],
        ]
    stall, total = seconds["stall_asynchronous"], seconds["save_asynchronous_total"]
    converted = f"{seconds['convert_deepspeed']} + {seconds['load_deepspeed']}"
    written = f"{result['bytes_per_parameter_deepspeed']} + {result['bytes_per_parameter_universal']}"
    return [
        [stage, "save, waiting for it (s)", seconds["save_deepspeed"], seconds["save_synchronous"]],
        [stage, "asynchronous: stall (s); committed after (s)", "", f"{stall}; {total}"],
        [stage, f"resume at {RESUMED_AT} workers: convert + load (s)", converted, seconds["load_raylm"]],
        [stage, "bytes a parameter (DeepSpeed: + universal)", written, result["bytes_per_parameter"]],
        [stage, "the state that was loaded is the one saved", result["deepspeed_restores_the_same"], True],
    ]


def main() -> None:
    """Measure, explain, and end with one line of JSON."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), action="append", help="ZeRO stages; 1 and 3")
    parser.add_argument("--repeats", type=int, default=3, help="saves and loads; DeepSpeed converts once")
    parser.add_argument("--s3", action="store_true", help="raylm to and from SeaweedFS too")
    parser.add_argument("--folder", help="where to write; a temporary folder when not given")
    options = parser.parse_args()
    preset, repeats = ("llama-25m", 1) if options.quick else ("llama-125m", options.repeats)
    results = []
    with contextlib.ExitStack() as stack:
        if options.s3:
            from raylm.testing.servers import CREDENTIALS

            os.environ.update(CREDENTIALS)
        pool = stack.enter_context(ranks(RESUMED_AT))
        for stage in options.stage or ([1] if options.quick else [1, 3]):
            folder = Path(tempfile.mkdtemp(prefix="raylm-checkpoint-", dir=options.folder))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            results.append(measure(pool, preset, stage, folder, repeats))
            if options.s3:
                results.append(measure_s3(pool, preset, stage, repeats))
    on_disk = [one for one in results if "parameters" in one]
    figures = {
        # The worst of the stages is what is claimed.
        "resume_other_size_speedup": min(one["resume_other_size_speedup"] for one in on_disk),
        "async_stall_ratio": max(one["async_stall_ratio"] for one in on_disk),
        "parameters": on_disk[0]["parameters"],
    }
    title = f"{preset}, {figures['parameters'] / 1e6:.1f}M parameters, bf16, saved at {SAVED_AT} workers\n\n"
    body = table(["", "", "DeepSpeed", "raylm"], [line for one in results for line in rows(one)])
    finish("checkpoint", figures, details={"results": results}, table=title + body, keep=options.keep)


if __name__ == "__main__":
    main()
