"""`raylm schema`: what a job file may hold, for editors and for docs/jobs.md."""

from __future__ import annotations

import json

import click

from raylm.cli.common import import_plugins, plugin_options


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a table of every key instead.")
@plugin_options
def schema(as_markdown: bool, plugins: tuple[str, ...], job_file: str | None) -> None:
    """Print the JSON Schema of job files.

    Editors with a YAML language server complete and check a job file that begins with
    `# yaml-language-server: $schema=job.schema.json`.
    """
    from raylm.config.reference import job_schema, markdown

    import_plugins(plugins, job_file)
    click.echo(markdown() if as_markdown else json.dumps(job_schema(), indent=1), nl=not as_markdown)
