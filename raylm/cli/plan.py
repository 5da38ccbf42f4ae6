"""`raylm plan JOB`: what a job needs, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    from raylm.train.launch.preflight import try_job_model

    vocab_size, length, prepared = _sizes(job)
    try_job_model(job, vocab_size, length)

    def planned(changed: Job, counts: Sequence[int] | None) -> Plan:
        gpu_bytes = int(gpu_gigabytes * 1e9)
        return budget.plan(changed, vocab_size, sequence_length=length, gpu_bytes=gpu_bytes, workers=counts)

    made = planned(job, workers or None)
    helps = {count: what_helps(job, count, planned) for count in made.workers if not made.fitting(count)}
    click.echo("\n".join(plan_lines(made, helps, prepared=prepared)))
    if len(helps) < len(made.workers):
        print_next(command_line("train", job_file, overrides) + " --dry-run")


def _sizes(job: Job) -> tuple[int, int, bool]:
    """Vocabulary and row length, and whether they are those of shards. An object store is not asked."""
    from raylm.cli.preview import expected_sizes
    from raylm.shards import MANIFEST_NAME
    from raylm.storage import StoragePath

    place = StoragePath(job.mixture[0].path)
    if not place.is_local:
        tokenizer = job.prepare.tokenizer
        known = tokenizer.path is None or not StoragePath(tokenizer.path).is_local
        return (tokenizer.vocab_size if known else expected_sizes(job)[0]), job.prepare.sequence_length, False
    return *expected_sizes(job), (place / MANIFEST_NAME).exists()


def what_helps(job: Job, workers: int, planned: Callable[[Job, Sequence[int]], Plan]) -> list[str]:
    """What would make the job fit, each by itself, or all of it together; nothing that would not help."""
    changes: list[tuple[str, Job]] = []

    def changed(section: str, **values: Any) -> Job:
        return job.model_copy(update={section: getattr(job, section).model_copy(update=values)})

    if job.batch.micro_batch > 1:
        changes.append(("lower batch.micro_batch to 1", changed("batch", micro_batch=1)))
    if not job.model.activation_checkpointing:
        changes.append(("set model.activation_checkpointing", changed("model", activation_checkpointing=True)))
    if not job.zero.offload_optimizer:
        changes.append(("set zero.offload_optimizer", changed("zero", offload_optimizer=True)))
    alone = [words for words, other in changes if planned(other, [workers]).fitting(workers)]
    more = next((count for count in _MORE if count > workers and planned(job, [count]).fitting(count)), None)
    if more is not None:
        alone.append(f"train on {more} workers (workers.min)")
    if alone:
        return alone
    everything = job.model_copy(
        update={
            "batch": job.batch.model_copy(update={"micro_batch": 1}),
            "model": job.model.model_copy(update={"activation_checkpointing": True}),
            "zero": job.zero.model_copy(update={"offload_optimizer": True}),
        }
    )
    for count in (workers, *(count for count in _MORE if count > workers)):
        if planned(everything, [count]).fitting(count):
            and_more = f" and train on {count} workers (workers.min)" if count > workers else ""
            return [" and ".join(words for words, _ in changes) + and_more]
    return []


_MORE = tuple(2**power for power in range(1, 13))


def plan_lines(made: Plan, helps: Mapping[int, Sequence[str]] | None = None, *, prepared: bool = True) -> list[str]:
    """The plan as lines of plain text: facts, then a table for each number of workers, then what fits.

    helps: for each number of workers that fits nothing, what would change that.
    """
    shape = made.shape
    gpu = made.gpu_bytes / 1e9
    lines = [
        f"model        {made.model}, {made.dtype}, vocabulary {shape.vocabulary}, rows of {made.sequence_length}"
        + ("" if prepared else " (as `prepare` would make them)"),
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
        if not fitting:
            advice = (helps or {}).get(workers, ())
            lines.append("  to make it fit: " + (", or ".join(advice) or "use larger GPUs or a smaller model"))
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
