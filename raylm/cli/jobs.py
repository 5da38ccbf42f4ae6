"""`raylm jobs`: where the job files are that a job of one's own may begin with."""

from __future__ import annotations

import shlex
import sysconfig
from pathlib import Path

import click

from raylm.cli.common import as_typed, print_next, print_rows


@click.command()
def jobs() -> None:
    """List the job files that come with raylm, to copy and change."""
    folder = jobs_folder()
    files = sorted(folder.glob("*.yaml"))
    print_rows([(as_typed(str(file)), _about(file)) for file in files])
    print_next(f"cp {shlex.quote(as_typed(str(folder / 'pretrain-125m.yaml')))} mine.yaml", "raylm plan mine.yaml")


def jobs_folder() -> Path:
    """Beside the package in a clone; where wheels put their data otherwise."""
    clone = Path(__file__).parents[2] / "jobs"
    return clone if clone.is_dir() else Path(sysconfig.get_path("data")) / "share" / "raylm" / "jobs"


def _about(file: Path) -> str:
    """The first sentence of its first comment."""
    lines = file.read_text(encoding="utf-8").splitlines()
    words = " ".join(line.removeprefix("#").strip() for line in lines[1:4])
    return words.split(". ")[0].split(": ")[0].rstrip(".")
