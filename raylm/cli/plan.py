"""`raylm plan JOB`: what a job needs, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import click

from raylm.checkpoint.copy_schedule import copy_bytes
from raylm.cli.common import command_line, job_options, print_next, read_job
from raylm.model import budget
from raylm.model.budget import STAGES, Plan
from raylm.model.remedies import Changes, remedies


@click.command()
@job_options
@click.option(
    "--gpu-memory", "gpu_gigabytes", type=click.FloatRange(min=1), default=80.0, show_default=True, metavar="GB"
)
@click.option("--workers", type=click.IntRange(min=1), multiple=True, help="Plan for this many workers; repeatable.")
def plan(job_file: str, overrides: tuple[str, ...], gpu_gigabytes: float, workers: tuple[int, ...]) -> None:
    """Say what JOB needs: parameters, FLOPs per token, memory per worker by part for each ZeRO stage, and what fits.

    Nothing is started. Vocabulary and row length are those of the shards where these can be read, else those of the
    job's `prepare` section.
    """
    from raylm.prep.expected import expected_sizes
    from raylm.train.launch.preflight import try_job_model

    job = read_job(job_file, overrides)
    sizes = expected_sizes(job)
    try_job_model(job, sizes.vocabulary, sizes.sequence_length)
    made = budget.plan(
        job,
        sizes.vocabulary,
        sequence_length=sizes.sequence_length,
        gpu_bytes=int(gpu_gigabytes * 1e9),
        workers=workers or None,
    )
    advice = {count: remedies(job, made, count) for count in made.workers}
    click.echo("\n".join(plan_lines(made, origin=sizes.origin, advice=advice)))
    wanting = [count for count in made.workers if made.stage not in made.fitting(count)]
    if not wanting:
        print_next(command_line("train", job_file, overrides) + " --dry-run")
    elif advice[wanting[0]]:
        sized = ["--gpu-memory", f"{gpu_gigabytes:g}", *(f"--workers={count}" for count in workers)]
        print_next(command_line("plan", job_file, [*overrides, *flags(advice[wanting[0]][0])], *sized))


def flags(changes: Changes) -> list[str]:
    """Changes as --set takes them."""
    return [f"{key}={str(value).lower()}" for key, value in changes.items()]


def plan_lines(
    made: Plan, *, origin: str | None = None, advice: Mapping[int, Sequence[Changes]] = MappingProxyType({})
) -> list[str]:
    """The plan as lines of plain text: facts, then a table for each number of workers, then what fits.

    origin: where vocabulary and row length are from. advice: by number of workers, what would make a step fit.
    """
    shape = made.shape
    gpu = made.gpu_bytes / 1e9
    lines = [
        f"model        {made.model}, {made.dtype}, vocabulary {shape.vocabulary}, rows of {made.sequence_length}",
        *([f"sizes        {origin}"] if origin else []),
        f"parameters   {shape.parameters:,}",
        f"FLOPs/token  {made.flops_per_token:.4g}  (6 x matrix parameters + 12 x layers x width x row length)",
        f"batch        {made.sequences} sequences, {made.sequences * made.sequence_length:,} tokens, "
        f"micro-batches of {made.micro_batch}",
        f"activations  {'recomputed in the backward pass' if made.activation_checkpointing else 'kept'}",
        f"host memory  {4 * shape.block / 1e9:.2f} GB per worker, in which a block's first weights are made in fp32",
    ]
    for workers in made.workers:
        lines += ["", f"GB per worker, {workers} worker{'s' if workers > 1 else ''}", *_table(made, workers)]
        fitting = made.fitting(workers)
        answer = f"stage {', '.join(map(str, fitting))}" if fitting else "no stage"
        building = made.at(3, workers).building_bytes
        if building > made.at(3, workers).total_bytes:
            lines.append(f"  stage 3 takes {building / 1e9:.2f} GB while the engine is built, weight after weight")
        copies = copy_bytes(shape.parameters, workers) / 1e9
        lines.append(f"  copies of the newest steps take {copies:.2f} GB of host memory per worker")
        lines.append(f"  fits {gpu:g} GB: {answer} ({made.usable_bytes / 1e9:.1f} GB are left for tensors)")
        lines += _advice(made, workers, advice.get(workers))
    return lines


def _table(made: Plan, workers: int) -> list[str]:
    columns: tuple[str, ...] = ("weights", "gradients", "optimizer", "activations", "buffers", "total")
    if made.offload_optimizer:
        columns += ("host",)
    rows = [["ZeRO", *columns, ""]]
    for stage in STAGES:
        cell = made.at(stage, workers)
        mark = "fits" if stage in made.fitting(workers) else "too big"
        chosen = " <- zero.stage" if stage == made.stage else ""
        rows.append([str(stage), *(f"{getattr(cell, f'{name}_bytes') / 1e9:.2f}" for name in columns), mark + chosen])
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    return [
        "  " + "  ".join([*(text.rjust(width) for text, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def _advice(made: Plan, workers: int, advice: Sequence[Changes] | None) -> list[str]:
    """What would make the job's stage fit; None where nobody looked."""
    if advice is None or made.stage in made.fitting(workers):
        return []
    if not advice:
        return ["  no setting makes it fit, as far as the global batch feeds workers: use GPUs of more memory"]
    words = [" ".join(f"--set {flag}" for flag in flags(changes)) for changes in advice]
    return [f"  to make it fit: {', or '.join(words)}"]
