"""`raylm prepare JOB`: raw text to tokenized shards."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from raylm.cli.common import (
    as_typed,
    command_line,
    job_options,
    paths_row,
    print_next,
    print_rows,
    quiet_logs,
    reached,
    read_job,
    typed,
)
from raylm.humanize import count, duration

if TYPE_CHECKING:
    from raylm.config.job import Job
    from raylm.prep.prepare import PrepareProgress, PrepareReport


@click.command()
@job_options
@click.option("--dry-run", is_flag=True, help="Show what would be read and written, and stop.")
def prepare(job_file: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Turn the raw text of JOB's `prepare` section into tokenized shards.

    Running it again goes on where a killed run stopped, and does nothing when all is done.
    """
    job = read_job(job_file, overrides)
    from raylm.config.together import refuse_no_sources

    refuse_no_sources(job)
    from raylm.cli.preview import language_rows, prepare_rows
    from raylm.storage.once import asked_once

    if dry_run:
        with asked_once():
            print_rows([*prepare_rows(job), paths_row(job_file)])
        print_next(command_line("prepare", job_file, overrides))
        return
    quiet_logs()
    print_rows(language_rows(job))
    from raylm.prep.prepare import prepare as run_prepare

    result = run_prepare(job, progress=progress_lines())
    tokenizer = job.prepare.tokenizer
    print_rows(result_rows(result, vocab_size=None if tokenizer.path else tokenizer.vocab_size))
    print_next(*next_commands(job, result, job_file, overrides))


def next_commands(job: Job, result: PrepareReport, job_file: str, overrides: Sequence[str]) -> list[str]:
    """What works with the dataset now: training, where the job would train on it, else a look at it."""
    place, reach = as_typed(result.output), reached(result.output, job.object_store.connection())
    look = typed("raylm", "inspect", place, *reach)
    if not result.manifest.train_rows:
        return [look, f"{typed('raylm', 'evaluate')} RUN {typed('--data', place, *reach)}, where RUN is a run's folder"]
    if job.shards_url.rstrip("/") not in [entry.path.rstrip("/") for entry in job.mixture]:
        return [look]
    if not job.model.given:
        return [look, "or add a model to the job (model.preset, model.config or model.path) to train on it"]
    return [command_line("train", job_file, [*overrides, *_without_evaluation(job, result)])]


def _without_evaluation(job: Job, result: PrepareReport) -> list[str]:
    """The settings without which training over data that holds nothing out is refused."""
    if result.manifest.held_out_rows or job.evaluate.every_steps is None:
        return []
    return ["evaluate.every_steps=null", *(["checkpoint.keep_best=0"] if job.checkpoint.keep_best else [])]


def result_rows(result: PrepareReport, *, vocab_size: int | None = None) -> list[tuple[str, str]]:
    """What a preparation gave, in words. vocab_size: what was asked of a tokenizer that was trained."""
    from raylm.prep.report.card import step_lines

    manifest = result.manifest
    fewer = f"; the text has no more to make {vocab_size:,} of" if manifest.vocab_size < (vocab_size or 0) else ""
    how = "finished already" if result.already_done else f"in {duration(result.seconds)}"
    rows = [
        ("documents", f"{result.documents:,} {how}"),
        ("tokens", f"{count(result.tokens)}, {manifest.train_rows:,} rows of {manifest.sequence_length:,} to train on"),
        ("held out", f"{manifest.held_out_rows:,} rows"),
        ("vocabulary", f"{manifest.vocab_size:,}{fewer}"),
        ("shards", result.output),
    ]
    if result.skipped:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in result.skipped.items())
        rows.insert(1, ("skipped", f"{reasons}; examples in {result.output}/skipped.json"))
    steps = [("step" if index == 0 else "", words) for index, words in enumerate(step_lines(manifest))]
    warnings = [("WARNING", line) for line in result.warnings]
    if any(line.startswith("source ") for line in result.warnings):  # of a source's texts there are samples
        warnings.append(("", f"samples are in {result.output}/skipped.json"))
    return [*steps, *rows, ("report", f"{result.output}/report.html"), *warnings]


def progress_lines(
    every_seconds: float = 2.0, clock: Callable[[], float] = time.monotonic
) -> Callable[[PrepareProgress], None]:
    """A listener that prints each new phase, and within a phase a line every few seconds with rate and time left."""
    printed: dict[str, float] = {}
    began: dict[str, tuple[float, PrepareProgress]] = {}

    def tell(progress: PrepareProgress) -> None:
        now = clock()
        at, first = began.setdefault(progress.phase, (now, progress))
        if now - printed.get(progress.phase, float("-inf")) < every_seconds and progress.done < progress.total:
            return
        printed[progress.phase] = now
        words = progress.phase
        if progress.total > 1:
            words += f": {progress.done} of {progress.total}"
        if progress.documents:
            words += f", {count(progress.documents)} documents"
        if progress.tokens:
            words += f", {count(progress.tokens)} tokens"
        if progress.done > first.done and now > at:
            # What an earlier attempt did says nothing about this one's pace.
            done, unit = progress.tokens - first.tokens, "tokens"
            if not progress.tokens:
                done, unit = progress.documents - first.documents, "documents"
            words += f", {count(done / (now - at))} {unit}/s"
            if progress.done < progress.total:
                left = (now - at) * (progress.total - progress.done) / (progress.done - first.done)
                words += f", {duration(left)} left"
        click.echo(words)
        sys.stdout.flush()

    return tell
