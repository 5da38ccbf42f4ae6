"""`raylm train JOB`: train, or go on with a run that stopped."""

from __future__ import annotations

import click

from raylm.cli.common import (
    as_typed,
    command_line,
    job_options,
    paths_row,
    print_next,
    print_rows,
    quiet_logs,
    read_job,
)


@click.command()
@job_options
@click.option("--dry-run", is_flag=True, help="Show workers, tokens and output path, and stop.")
def train(job_file: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train JOB to its last step.

    Run the same command again to go on from the newest checkpoint. Ctrl-C saves and stops; a second one stops at once.
    """
    job = read_job(job_file, overrides)
    if dry_run:
        from raylm.cli.preview import train_rows

        print_rows([*train_rows(job), paths_row(job_file)])
        print_next(command_line("train", job_file, overrides))
        return
    quiet_logs()
    from raylm.cli.progress import watching
    from raylm.train.launch import train as run_train

    with watching(job.train.steps) as display:
        result = run_train(job, on_record=display.show)
    if result.already_finished:
        click.echo(f"finished already at step {result.step}; raise train.steps to go on")
    run = as_typed(job.run_url)
    print_rows([("steps", f"{result.step:,}"), ("loss", _loss(result.loss)), ("run", run)])
    print_next(f"raylm evaluate {run}", f"raylm generate {run} --prompt 'The '", f"raylm report {run}")


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"
