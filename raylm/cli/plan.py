"""`raylm plan JOB`: what a job needs, by arithmetic alone."""

from __future__ import annotations

import click

from raylm.checkpoint.copy_schedule import copy_bytes
from raylm.cli.common import command_line, job_options, print_next, read_job
from raylm.config.job import Job
from raylm.model import budget
from raylm.model.budget import STAGES, Plan


@click.command()
@job_options
@click.option(
    "--gpu-memory", "gpu_gigabytes", type=click.FloatRange(min=1), default=80.0, show_default=True, metavar="GB"
)
@click.option("--workers", type=click.IntRange(min=1), multiple=True, help="Plan for this many workers; repeatable.")
def plan(job_file: str, overrides: tuple[str, ...], gpu_gigabytes: float, workers: tuple[int, ...]) -> None:
    """Say what JOB needs: parameters, FLOPs per token, memory per worker by part for each ZeRO stage, and what fits.

    Nothing is started. Vocabulary and row length are those of the shards where these are on this machine, else those
    of the job's `prepare` section.
    """
    job = read_job(job_file, overrides)
    vocab_size, length = _shard_sizes(job)
    made = budget.plan(
        job, vocab_size, sequence_length=length, gpu_bytes=int(gpu_gigabytes * 1e9), workers=workers or None
    )
    click.echo("\n".join(plan_lines(made)))
    print_next(command_line("train", job_file, overrides) + " --dry-run")


def _shard_sizes(job: Job) -> tuple[int | None, int | None]:
    """Vocabulary and row length of shards on this machine; an object store is not asked, a plan must not wait."""
    from raylm.shards import MANIFEST_NAME, read_manifest
    from raylm.storage import StoragePath

    place = StoragePath(job.mixture[0].path)
    if not place.is_local or not (place / MANIFEST_NAME).exists():
        return None, None
    manifest = read_manifest(place)
    return manifest.vocab_size, manifest.sequence_length


def plan_lines(made: Plan) -> list[str]:
    """The plan as lines of plain text: facts, then a table for each number of workers, then what fits."""
    shape = made.shape
    gpu = made.gpu_bytes / 1e9
    lines = [
        f"model        {made.model}, {made.dtype}, vocabulary {shape.vocabulary}, rows of {made.sequence_length}",
        f"parameters   {shape.parameters:,}",
        f"FLOPs/token  {made.flops_per_token:.4g}  (6 x matrix parameters + 12 x layers x width x row length)",
        f"batch        {made.sequences} sequences, {made.sequences * made.sequence_length:,} tokens, "
        f"micro-batches of {made.micro_batch}",
        f"activations  {'recomputed in the backward pass' if made.activation_checkpointing else 'kept'}",
        f"host memory  {4 * shape.parameters / 1e9:.2f} GB per worker, in which it builds the weights in fp32",
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
        if not fitting:
            lines.append("  " + _advice(made))
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


def _advice(made: Plan) -> str:
    wishes = ["lower batch.micro_batch"] if made.micro_batch > 1 else []
    if not made.activation_checkpointing:
        wishes.append("set model.activation_checkpointing")
    if not made.offload_optimizer:
        wishes.append("set zero.offload_optimizer")
    wishes.append("raise workers.min")
    return "to make it fit: " + ", ".join(wishes)
