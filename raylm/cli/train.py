"""`raylm train JOB`: train, or go on with a run that stopped."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raylm.cli.common import (
    as_typed,
    command_line,
    job_options,
    leave_terminal,
    paths_row,
    print_next,
    print_rows,
    quiet_logs,
    reached,
    read_job,
    say_how_to_stop,
    show_log,
    typed,
)
from raylm.errors import DataError

if TYPE_CHECKING:
    from raylm.cli.progress import Display
    from raylm.config.job import Job
    from raylm.run.events import Event
    from raylm.run.metrics import StepMetrics


@click.command()
@job_options
@click.option("--dry-run", is_flag=True, help="Show workers, tokens and output path, and stop; 0 if it could begin.")
def train(job_file: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train JOB to its last step.

    Run the same command again to go on from the newest checkpoint. Ctrl-C saves and stops; a second one stops at once.
    """
    job = read_job(job_file, overrides)
    _refuse_moved_run(job_file, overrides, job)
    from raylm.cli.preview import refuse_missing_data, train_rows

    if dry_run:
        from raylm.storage.once import asked_once

        with asked_once():
            print_rows([*train_rows(job), paths_row(job_file)])
            try:
                refuse_missing_data(job, job_file, overrides)
            except DataError:
                if job.prepare.sources and not job.data.path and not job.data.mixture:
                    print_next(command_line("prepare", job_file, overrides))
                raise
        print_next(command_line("train", job_file, overrides))
        return
    quiet_logs()
    say_how_to_stop()
    from raylm.cli.progress import watching
    from raylm.train.launch import train as run_train

    show_log("raylm.train.launch.run")
    try:
        with watching(job.train.steps) as display:
            result = run_train(job, on_record=_shown_on(display))
    except DataError:
        refuse_missing_data(job, job_file, overrides)
        raise
    if result.already_finished:
        click.echo(f"finished already at step {result.step}; raise train.steps to go on")
    run = as_typed(job.run_url)
    print_rows([("steps", f"{result.step:,}"), ("loss", _loss(result.loss)), ("run", run)])
    reach = reached(run, job.object_store.connection())
    print_next(
        typed("raylm", "evaluate", run, *reach),
        typed("raylm", "generate", run, "--prompt", "The ", *reach),
        typed("raylm", "report", run, *reach),
    )


def _shown_on(display: Display) -> Callable[[StepMetrics | Event], None]:
    """What shows a record, as long as there is a terminal: a run goes on, or saves, without one."""

    def show(record: StepMetrics | Event) -> None:
        try:
            display.show(record)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            leave_terminal()

    return show


def _refuse_moved_run(job_file: str, overrides: Sequence[str], job: Job) -> None:
    """Raise for the run.yaml of a folder that was copied or moved: it names the folder it was written in."""
    from raylm.errors import ConfigError
    from raylm.run.folder import RunFolder
    from raylm.storage import StoragePath

    file = Path(job_file).resolve()
    run = RunFolder(StoragePath(str(file.parent)))
    chosen = any(override.partition("=")[0].strip() in ("storage", "name") for override in overrides)
    if chosen or file.name != run.settings.name or not run.has_trained():
        return
    named = StoragePath(job.run_url).local_path() if StoragePath(job.run_url).is_local else None
    if named is None or named.resolve() != file.parent:
        here = typed("--set", f"storage={file.parent.parent}", "--set", f"name={file.parent.name}")
        raise ConfigError(
            f"{job_file} lies in the run folder {file.parent}, but names {job.run_url} as the run's folder",
            hint=f"pass {here} to train on where it lies, or --set name={job.name} to train in {job.run_url}",
        )


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"
