"""`raylm prepare JOB`: raw text to tokenized shards."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from raylm.cli.common import command_line, job_options, paths_row, print_next, print_rows, quiet_logs, read_job
from raylm.humanize import count, duration

if TYPE_CHECKING:
    from raylm.prep.prepare import PrepareProgress, PrepareReport


@click.command()
@job_options
@click.option("--dry-run", is_flag=True, help="Show what would be read and written, and stop.")
def prepare(job_file: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Turn the raw text of JOB's `prepare` section into tokenized shards.

    Running it again goes on where a killed run stopped, and does nothing when all is done.
    """
    job = read_job(job_file, overrides)
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

    print_rows(result_rows(run_prepare(job, progress=progress_lines())))
    print_next(command_line("train", job_file, overrides))


def result_rows(result: PrepareReport) -> list[tuple[str, str]]:
    """What a preparation gave, in words."""
    from raylm.prep.report.card import step_lines

    manifest = result.manifest
    how = "finished already" if result.already_done else f"in {duration(result.seconds)}"
    rows = [
        ("documents", f"{result.documents:,} {how}"),
        ("tokens", f"{count(result.tokens)}, {manifest.train_rows:,} rows of {manifest.sequence_length:,} to train on"),
        ("held out", f"{manifest.held_out_rows:,} rows"),
        ("vocabulary", f"{manifest.vocab_size:,}"),
        ("shards", result.output),
    ]
    if result.skipped:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in result.skipped.items())
        rows.insert(1, ("skipped", f"{reasons}; examples in {result.output}/skipped.json"))
    steps = [("step" if index == 0 else "", words) for index, words in enumerate(step_lines(manifest))]
    warnings = [("WARNING", line) for line in result.warnings]
    if warnings:
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
