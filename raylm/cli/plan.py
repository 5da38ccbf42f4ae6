"""`raylm plan JOB`: what a job needs, by arithmetic alone."""

from __future__ import annotations

import click

from raylm.cli.common import again, job_options, next_step, read_job
from raylm.config.job import Job


@click.command()
@job_options
@click.option(
    "--gpu-memory", "gpu_gigabytes", type=click.FloatRange(min=1), default=80.0, show_default=True, metavar="GB"
)
@click.option("--workers", type=click.IntRange(min=1), multiple=True, help="Plan for this many workers; repeatable.")
def plan(job_file: str, overrides: tuple[str, ...], gpu_gigabytes: float, workers: tuple[int, ...]) -> None:
    """Say what JOB needs: parameters, FLOPs a token, memory a worker by part for each ZeRO stage, and what fits.

    Nothing is started. Vocabulary and row length are those of the shards where these are on this machine, else those
    of the job's `prepare` section.
    """
    from raylm.model import budget

    job = read_job(job_file, overrides)
    vocab_size, length = _shard_sizes(job)
    made = budget.plan(
        job, vocab_size, sequence_length=length, gpu_bytes=int(gpu_gigabytes * 1e9), workers=workers or None
    )
    click.echo("\n".join(budget.plan_lines(made)))
    next_step(again("train", job_file, overrides) + " --dry-run")


def _shard_sizes(job: Job) -> tuple[int | None, int | None]:
    """Vocabulary and row length of shards on this machine; an object store is not asked, a plan must not wait."""
    from raylm.shards import MANIFEST_NAME, read_manifest
    from raylm.storage import StoragePath

    place = StoragePath(job.mixture[0].path)
    if not place.is_local or not (place / MANIFEST_NAME).exists():
        return None, None
    manifest = read_manifest(place)
    return manifest.vocab_size, manifest.sequence_length
