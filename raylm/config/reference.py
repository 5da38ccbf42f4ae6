"""The settings as documents: a JSON Schema for editors, and the reference of every key in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from raylm.config.describe import default_words, type_words
from raylm.config.job import Job
from raylm.config.keys import ANY_NAME, ENTRY, Setting, settings_in, shared

_INTRODUCTION = """\
# Job files: every key

A job file is YAML; every key has a default. This page is made by `raylm schema --markdown` and kept current by a test;
`raylm explain KEY` says the same on the command line, and `raylm schema` prints a JSON Schema, with which editors
complete and check job files: begin one with

    # yaml-language-server: $schema=PATH/TO/docs/job.schema.json

- An unknown key, a wrong type or a value out of range is an error that names file, line and key.
- `--set a.b=c` on the command line changes one key, as `raylm.with_overrides(job, {"a.b": c})` does in a program; an
  entry of a list is named by its number, as in `--set data.mixture.0.weight=2`.
- A relative path in a job file starts from the job file's folder, one in `--set` or in a program from the working
  directory. `--dry-run` shows where that leads. `~` is the home folder; environment variables are not put in.
- Scalars follow YAML 1.2: `1e-4` is a number, `no` is a word, `0100` is a hundred.
"""


def job_schema() -> dict[str, Any]:
    """The JSON Schema of job files, registered operators, sources and objectives included."""
    schema = Job.model_json_schema()
    _drop_titles(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "raylm job file",
    } | schema


def _drop_titles(node: Any) -> None:
    """Remove the titles that pydantic derives from names: editors would show them in place of the key."""
    if isinstance(node, list):
        for entry in node:
            _drop_titles(entry)
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for entry in node.values():
            _drop_titles(entry)


def markdown() -> str:
    """Every key with type, default and meaning, a table for each section."""
    return "\n".join([_INTRODUCTION, *_tables(list(settings_in()))]) + "\n"


def _tables(settings: Sequence[Setting]) -> Iterator[str]:
    sections = {setting.key: setting for setting in settings if setting.section is not None}
    for parent in dict.fromkeys(setting.parent for setting in settings):
        group = [setting for setting in settings if setting.parent == parent]
        above = sections.get(_field_of(parent))
        yield f"#{'#' * (1 + min(parent.count('.') - parent.count(f'.{ENTRY}'), 3))} {_heading(parent)}\n"
        if above is not None:
            yield f"{above.meaning}\n"
        yield from _by_kind(group)


def _by_kind(group: Sequence[Setting]) -> Iterator[str]:
    """A table of what every kind takes, then one for what some kinds take."""
    found = shared(group)
    kinds = {kind for one in found for kind in one.kinds}
    for some in dict.fromkeys(one.kinds if set(one.kinds) != kinds else () for one in found):
        if some:
            yield f"Kind{'s' if len(some) > 1 else ''} {', '.join(f'`{kind}`' for kind in some)}:\n"
        yield _table(one.setting for one in found if (one.kinds if set(one.kinds) != kinds else ()) == some)


def _table(settings: Iterable[Setting]) -> str:
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        default = default_words(setting.field)
        cells = (f"`{setting.name}`", type_words(setting.field), f"`{default}`" if default else "", setting.meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _field_of(parent: str) -> str:
    """The key of the field whose entries these are."""
    while parent.endswith((f".{ENTRY}", f".{ANY_NAME}")):
        parent = parent.rpartition(".")[0]
    return parent


def _heading(parent: str) -> str:
    shown = parent.replace(f".{ENTRY}", "[]").replace(f".{ANY_NAME}", ".NAME")
    return f"`{shown}`" if parent else "Top level"
