"""Which files a dataset is made from: listed once, before any work, and compared with what is there later.

A preparation that goes on, or is finished, reads no file that came later; whoever runs it is told. Files are told apart
by name and size, so a change that leaves the size goes unseen.
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from raylm.config.job import Job
from raylm.config.prepare.sources import SOURCES, SourceSettings
from raylm.errors import ConfigError, RaylmError
from raylm.storage import NotFound, StoragePath

Files: TypeAlias = Mapping[str, Mapping[str, int]]  # source → file, local ones as seen from the dataset → bytes
LISTED_NAME = "sources.json"
_NAMED = 3  # files in a warning


def named(path: StoragePath, output: StoragePath) -> str:
    """A file's name in a listing: sources and dataset may move together."""
    return os.path.relpath(path.url, output.url) if path.is_local and output.is_local else path.url


def refuse_own_folder(source: SourceSettings, found: Iterable[tuple[StoragePath, int]], output: StoragePath) -> None:
    """Raise ConfigError where what is read lies in the folder that is written: to do it anew would remove both."""
    written = _resolved(output.url, local=output.is_local)
    within: dict[str, bool] = {}  # by folder: a crawl has a million files in a few
    for path, _ in found:
        folder = path.url.rpartition("/")[0]
        if folder not in within:
            within[folder] = f"{_resolved(folder, local=path.is_local)}/".startswith(f"{written}/")
        if within[folder]:
            raise ConfigError(
                f"source {source.name!r} reads {path.url}, which lies in {output.url}, where prepared data would go",
                hint="choose another prepare.output, a folder of its own",
                key="prepare.output",
            )


def _resolved(url: str, *, local: bool) -> str:
    return str(Path(url).resolve()).rstrip("/") if local else url.rstrip("/")


def write_listed(output: StoragePath, files: Files) -> None:
    """Write the listing beside a dataset."""
    (output / LISTED_NAME).write_text(json.dumps(files, indent=1, ensure_ascii=False) + "\n")


def news_of_finished(job: Job, output: StoragePath) -> list[str]:
    """What became of the files of a finished dataset since it was begun."""
    try:
        return news(job, output, json.loads((output / LISTED_NAME).read_text()))
    except NotFound:
        return []


def news(job: Job, output: StoragePath, then: Files) -> list[str]:
    """A warning for each source of which files were added, or changed; what is gone is told by who reads it."""
    lines = []
    for source in job.prepare.sources:
        now = _files(job, source, output) if source.name in then else {}
        before = then.get(source.name, {})
        added = [name for name in now if name not in before]
        changed = [
            f"{name}, {before[name]:,} bytes then and {size:,} now"
            for name, size in now.items()
            if before.get(name, size) != size
        ]
        for what, found in (("were added", added), ("have changed", changed)):
            if found:
                lines.append(
                    f"source {source.name!r}: {len(found):,} of its files {what} since this preparation began, and are "
                    f"not taken in ({'; '.join(found[:_NAMED])}): choose another prepare.output, or remove "
                    f"{output.url}, to prepare it anew"
                )
    return lines


def _files(job: Job, source: SourceSettings, output: StoragePath) -> dict[str, int]:
    kind = SOURCES.get(source.kind)
    if kind.collect is not None or getattr(source, "paths", None) is not None:
        return {}  # of a list of paths, each size is a request
    try:
        return {named(path, output): size for path, size in kind.files(source, job.object_store.connection())}
    except RaylmError:
        return {}  # raw files may go when the dataset stands
