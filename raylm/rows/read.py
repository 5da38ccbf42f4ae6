"""The rows of a file of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from raylm.errors import ConfigError, DataError
from raylm.rows.bad import OnBadRow, Unit, refuse
from raylm.rows.base import Row, RowFile
from raylm.rows.binary import refuse_binary
from raylm.rows.compressed import COMPRESSED
from raylm.rows.json_rows import json_file, json_lines
from raylm.rows.lines import text_lines
from raylm.rows.tables import arrow_rows, csv_rows, parquet_rows
from raylm.storage import Connection, StoragePath, find

UNITS: dict[str, Unit] = {
    **{"jsonl": "byte", "text": "byte", "csv": "line", "parquet": "row", "arrow": "row", "json": "item"}
}
_ENDINGS = {
    **{".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv", ".json": "json"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"},
}


def kind_of(path: StoragePath) -> str | None:
    """The kind that a file of this name is, below a compression's ending; None for one that holds no rows."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)


def read_rows(file: RowFile, kind: str | None = None) -> Iterator[Row]:
    """The file's rows in order. kind: jsonl, json, csv, parquet, arrow or text; by the file's name when not given.

    A bad row goes to `file.on_bad`; BrokenFile where the file cannot be read, or not to its end.
    """
    kind = kind or kind_of(file.path)
    if kind not in UNITS:
        raise ConfigError(
            f"{file.path.url} is no file of rows that raylm knows by its name"
            if kind is None
            else f"there is no kind of rows {kind!r}",
            hint=f"give its kind: {', '.join(sorted(UNITS))}",
        )
    file = replace(file, unit=UNITS[kind])
    if kind == "parquet":
        yield from parquet_rows(file)
        return
    readers = {"jsonl": json_lines, "json": json_file, "csv": csv_rows, "arrow": arrow_rows, "text": text_lines}
    with file.open() as stream:
        if kind != "arrow":
            refuse_binary(file.path, stream)
        yield from readers[kind](file, stream)


def read_glob(
    glob: str,
    connection: Connection,
    *,
    kind: str | None = None,
    columns: tuple[str, ...] | None = None,
    on_bad: OnBadRow = refuse,
) -> Iterator[Row]:
    """The rows of all files that match, in the order of their names; DataError where none does."""
    files = find(glob, connection)
    if not files:
        raise DataError(f"no file matches {glob}", hint="check the path and the wildcards")
    for path, _ in files:
        yield from read_rows(RowFile(StoragePath(path.url, connection), columns, on_bad=on_bad), kind)
