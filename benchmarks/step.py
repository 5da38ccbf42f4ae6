"""What does raylm's loop cost over a bare DeepSpeed loop: the same model, batch, precision, ZeRO stage and workers?

Both engines live in the same processes and take turns, a few steps each, so that a busy machine slows both. The bare
loop is what one would write by hand: whole-row tensors that are already there, transformers' own loss, backward, step.
raylm's reads shards from disk as a run does, counts the batch's tokens, seeds each micro-batch, sums the loss over all
ranks, checks that it is finite, and reports every step.

    python benchmarks/step.py [--quick] [--stage 1] [--workers 2]
    python benchmarks/step.py --gpu [--eager] [--micro 8]     # llama-350m and llama-1b in bf16 on one GPU, with MFU
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import arguments, finish, table  # noqa: E402
from raylm.testing.ranks import ranks  # noqa: E402

if TYPE_CHECKING:
    from raylm.train.engine import Engine, EngineSettings
    from raylm.train.group import Group

VOCABULARY = 8192
GPU_VOCABULARY = 32000


@dataclass(frozen=True)
class Case:
    """One comparison. A block is the steps that one loop takes before it is the other's turn."""

    preset: str
    dtype: str
    stage: int
    sequences: int
    micro_batch: int
    length: int
    vocabulary: int
    rounds: int
    block: int
    compiled: bool = False


@dataclass(frozen=True)
class Timing:
    """Medians over rounds, of one rank; seconds are for one step.

    processor_ratio compares the time that the process spent computing, which others on the machine disturb less.
    """

    tokens_per_second: float
    bare_tokens_per_second: float
    ratio: float
    spread: tuple[float, float]
    processor_ratio: float
    data_seconds: float
    engine_seconds: float
    loop_seconds: float
    bare_seconds: float


class Watched:
    """An engine whose time in `step` is added up."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = self._engine.step(*args, **kwargs)
        self.seconds += time.perf_counter() - began
        return result


class Waits:
    """An iterator of which the time until each item is added up."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.seconds = 0.0

    def __iter__(self) -> Waits:
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        item = next(self._items)
        self.seconds += time.perf_counter() - began
        return item


def write_shards(folder: Path, case: Case) -> None:
    """Random rows: their content costs a step nothing."""
    import numpy as np

    from raylm.shards import RowFormat
    from raylm.testing.datasets import write_dataset

    rows = np.random.default_rng(0).integers(0, case.vocabulary, (1025, case.length))
    write_dataset(folder, RowFormat(case.length, case.vocabulary, "none", eos_id=0), rows[:1024], rows[1024:])


def settings_of(case: Case) -> tuple[Any, Any, Any, Any]:
    """The sections of a job that both loops share."""
    from raylm.config.model import ModelSettings
    from raylm.config.optim import BatchSettings, OptimSettings, ZeroSettings

    return (
        ModelSettings(preset=case.preset, dtype=case.dtype, compile=case.compiled),
        BatchSettings(sequences=case.sequences, micro_batch=case.micro_batch),
        OptimSettings(lr=1e-4),
        ZeroSettings(stage=case.stage),
    )


def raylm_loop(group: Group, case: Case, folder: str) -> tuple[Any, Watched, Waits, Engine]:
    """The loop that a run uses, fed as a run feeds it."""
    from raylm.config.data import DataSettings
    from raylm.config.optim import TrainSettings
    from raylm.model.build import build_model
    from raylm.objectives.causal import Causal
    from raylm.shards import read_manifest
    from raylm.storage import StoragePath
    from raylm.stream.loader import Stream, StreamSettings
    from raylm.stream.reading import Dataset
    from raylm.train.engine import Engine
    from raylm.train.loop import steps

    model, batch, optim, _ = settings_of(case)
    place = StoragePath(folder)
    stream = Stream(
        [Dataset(place, read_manifest(place))],
        StreamSettings(batch, DataSettings(path=folder, reader="threads")),
        rank=group.rank,
        world_size=group.size,
    )
    engine = Engine.build(
        build_model(model, vocab_size=case.vocabulary, sequence_length=case.length, seed=0),
        group,
        Causal(),
        engine_settings(case, group),
    )
    watched, waits = Watched(engine), Waits(iter(stream))
    reports = steps(watched, waits, optim=optim, train=TrainSettings(steps=1_000_000))  # type: ignore[arg-type]
    return reports, watched, waits, engine


def engine_settings(case: Case, group: Group) -> EngineSettings:
    """The case's, on this group."""
    from raylm.train.accumulation import micro_batches_per_rank
    from raylm.train.engine import EngineSettings

    _, batch, optim, zero = settings_of(case)
    accumulation = micro_batches_per_rank(batch.lanes, group.size)
    return EngineSettings(zero, optim, case.micro_batch, accumulation, bf16=case.dtype == "bf16")


def bare_loop(group: Group, case: Case) -> Iterator[None]:
    """DeepSpeed and nothing else: a step each time it is asked."""
    import deepspeed
    import torch

    from raylm.model.build import build_model
    from raylm.train.engine import deepspeed_config

    model, batch, optim, _ = settings_of(case)
    turns = batch.lanes // group.size
    module = build_model(model, vocab_size=case.vocabulary, sequence_length=case.length, seed=0)
    parameters = list(module.parameters())
    elements = sum(parameter.numel() for parameter in parameters)
    config = deepspeed_config(engine_settings(case, group), group, elements=elements)
    config |= {"gradient_accumulation_steps": turns, "gradient_clipping": optim.max_grad_norm}
    optimizer = torch.optim.AdamW(
        parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    shape = (16, case.micro_batch, case.length)
    rows = torch.randint(0, case.vocabulary, shape, generator=torch.Generator().manual_seed(group.rank))
    batches = itertools.cycle(rows.to(group.device))
    while True:
        for tokens in itertools.islice(batches, turns):
            engine.backward(engine(input_ids=tokens, labels=tokens, use_cache=False).loss)
            engine.step()
        yield


def measure(group: Group, case: Case, folder: str) -> Timing:
    """Let the loops take turns; collective over the group."""
    reports, watched, waits, engine = raylm_loop(group, case, folder)
    bare = bare_loop(group, case)
    seconds: dict[str, list[float]] = {name: [] for name in ("raylm", "bare", "data", "engine", "busy", "bare_busy")}

    def block(name: str) -> tuple[float, float]:
        group.barrier()
        began, busy = time.perf_counter(), time.process_time()
        for _ in itertools.islice(reports if name == "raylm" else bare, case.block):
            pass
        wait_for_device(group)
        return (time.perf_counter() - began) / case.block, (time.process_time() - busy) / case.block

    for turn in range(-1, case.rounds):
        for name in ("raylm", "bare") if turn % 2 else ("bare", "raylm"):
            watched.seconds = waits.seconds = 0.0
            taken, busy = block(name)
            if turn < 0:  # warm-up
                continue
            seconds[name].append(taken)
            seconds["busy" if name == "raylm" else "bare_busy"].append(busy)
            if name == "raylm":
                seconds["data"].append(waits.seconds / case.block)
                seconds["engine"].append(watched.seconds / case.block)
    engine.destroy()
    ratios = sorted(b / r for b, r in zip(seconds["bare"], seconds["raylm"], strict=True))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    tokens = case.sequences * case.length
    return Timing(
        tokens_per_second=tokens / middle["raylm"],
        bare_tokens_per_second=tokens / middle["bare"],
        ratio=statistics.median(ratios),
        spread=(ratios[0], ratios[-1]),
        processor_ratio=middle["bare_busy"] / middle["busy"],
        data_seconds=middle["data"],
        engine_seconds=middle["engine"],
        loop_seconds=middle["raylm"],
        bare_seconds=middle["bare"],
    )


def wait_for_device(group: Group) -> None:
    """Kernels run behind the loop on a GPU."""
    if group.device != "cpu":
        import torch

        torch.cuda.synchronize()


def on_gpu(cases: Sequence[Case]) -> list[tuple[Case, Timing, dict[str, Any]]]:
    """Each case in this process alone on one GPU, without Ray; with MFU and the peak of memory."""
    import torch

    from raylm.model.flops import flops_per_token, peak_flops, shape_of
    from raylm.train.deepspeed_internals import forget_group
    from raylm.train.group import leave_group, single

    name = torch.cuda.get_device_name()
    peak = peak_flops(name)
    results = []
    for case in cases:
        group = single()
        torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory(prefix="raylm-step-") as folder:
            write_shards(Path(folder), case)
            timing = measure(group, case, folder)
        forget_group()
        leave_group(group)
        torch.cuda.empty_cache()
        flops = flops_per_token(shape_of(settings_of(case)[0], case.vocabulary, case.length), case.length)
        more = {
            "device": name,
            "mfu": flops * timing.tokens_per_second / peak if peak else None,
            "bare_mfu": flops * timing.bare_tokens_per_second / peak if peak else None,
            "peak_gib_of_both": torch.cuda.max_memory_allocated() / 2**30,
        }
        results.append((case, timing, more))
    return results


def on_cpu(case: Case, workers: int) -> Timing:
    """The case on local processes; the slowest rank speaks, since all wait for it."""
    with tempfile.TemporaryDirectory(prefix="raylm-step-") as folder, ranks(workers) as pool:
        write_shards(Path(folder), case)
        timings: list[Timing] = pool.run(measure, workers, case, folder, seconds=3000)
    return min(timings, key=lambda timing: timing.ratio)


def rows_of(case: Case, timing: Timing, more: dict[str, Any]) -> list[list[Any]]:
    """A table's lines: both loops, then where raylm's time beyond the bare loop's goes."""
    beyond = timing.engine_seconds - timing.bare_seconds
    rest = timing.loop_seconds - timing.engine_seconds - timing.data_seconds
    lines = [
        [
            case.preset,
            "bare DeepSpeed: tokens/s; ms a step",
            *_speed(timing.bare_tokens_per_second, timing.bare_seconds),
        ],
        [case.preset, "raylm: tokens/s; ms a step", *_speed(timing.tokens_per_second, timing.loop_seconds)],
        [case.preset, "ratio: median; least and most of the rounds", f"{timing.ratio:.3f}", _span(timing.spread)],
        [case.preset, "ratio of processor time", f"{timing.processor_ratio:.3f}", ""],
        [case.preset, "engine beyond the bare step: loss, seeds, sum over ranks, finite", "", _ms(beyond)],
        [case.preset, "waiting for data", "", _ms(timing.data_seconds)],
        [case.preset, "counting tokens, learning rate, report", "", _ms(rest)],
    ]
    if more.get("mfu") is not None:
        lines.append([case.preset, "MFU: raylm; bare", f"{more['mfu']:.3f}", f"{more['bare_mfu']:.3f}"])
    return lines


def _speed(tokens_per_second: float, seconds: float) -> tuple[str, str]:
    return f"{tokens_per_second:.0f}", f"{seconds * 1000:.1f}"


def _span(span: tuple[float, float]) -> str:
    return f"{span[0]:.3f} to {span[1]:.3f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def main() -> None:
    """Measure, explain, and end with one line of JSON."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--stage", type=int, choices=(0, 1, 2, 3), default=1, help="ZeRO stage")
    parser.add_argument("--workers", type=int, default=2, help="processes, without --gpu")
    parser.add_argument("--gpu", action="store_true", help="llama-350m and llama-1b in bf16 on one GPU")
    parser.add_argument("--eager", action="store_true", help="with --gpu: without torch.compile")
    parser.add_argument("--micro", type=int, help="with --gpu: sequences of 2048 tokens in a micro-batch")
    options = parser.parse_args()
    if options.gpu:
        rounds, block = (3, 5) if options.quick else (10, 10)
        cases = [
            Case(
                preset=preset,
                dtype="bf16",
                stage=options.stage,
                sequences=2 * (options.micro or micro),
                micro_batch=options.micro or micro,
                length=2048,
                vocabulary=GPU_VOCABULARY,
                rounds=rounds,
                block=block,
                compiled=not options.eager,
            )
            for preset, micro in (("llama-350m", 16), ("llama-1b", 8))
        ]
        results = on_gpu(cases)
    else:
        rounds, block = (8, 1) if options.quick else (40, 1)
        length = 64 if options.quick else 128
        case = Case("llama-25m", "fp32", options.stage, 4 * options.workers, 2, length, VOCABULARY, rounds, block)
        results = [(case, on_cpu(case, options.workers), {"workers": options.workers})]
    figures: dict[str, Any] = {"tokens_per_second_ratio": round(min(t.ratio for _, t, _ in results), 4)}
    for case, timing, more in results:
        name = case.preset.replace("-", "_")
        figures[f"{name}_tokens_per_second"] = round(timing.tokens_per_second)
        if more.get("mfu") is not None:
            figures[f"{name}_mfu"] = round(more["mfu"], 4)
    details = [{"case": asdict(case), "timing": asdict(timing), **more} for case, timing, more in results]
    lines = [line for result in results for line in rows_of(*result)]
    finish(
        "step-gpu" if options.gpu else "step",
        figures,
        details={"results": details},
        table=table(["model", "", "", ""], lines),
        keep=options.keep,
    )


if __name__ == "__main__":
    main()
