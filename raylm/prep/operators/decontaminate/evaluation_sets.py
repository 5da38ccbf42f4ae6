"""Evaluation sets as they are found: their records, each with its texts in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from raylm.config.base import Settings
from raylm.config.paths import PathOrUrl
from raylm.errors import DataError
from raylm.rows import RowFile, read_rows
from raylm.storage import Connection, StoragePath, find

_MAX_BYTES = 2**31  # of a JSON file, which is read at once: TriviaQA's largest has 2 GB


class EvaluationSet(Settings):
    """Texts that a model will be judged by."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="Its name in reasons and reports.")
    glob: PathOrUrl = Field(description="Files, on any fsspec URL, plain or compressed.")
    kind: Literal["jsonl", "json", "parquet", "text"] = Field(
        "jsonl", description="json: one value a file. text: one text a line."
    )
    columns: Annotated[list[str], Field(min_length=1)] = Field(
        default_factory=lambda: ["text"],
        description="Keys or columns, at any depth, under which all texts are taken; not used by text. A record's "
        "texts are also read as one, in this order: a run may go from a question into its answer.",
    )


def records(wanted: EvaluationSet, connection: Connection) -> Iterator[list[str]]:
    """The texts of each line, row, list item or file of the set; a DataError where there is none."""
    files = find(wanted.glob, connection)
    if not files:
        raise DataError(
            f"evaluation set {wanted.name!r}: no file matches {wanted.glob}", hint="correct its `glob` in the job"
        )
    empty = True
    keys: set[str] = set()
    for path, _ in files:
        for value in _values(wanted, path):
            texts = [value["text"]] if wanted.kind == "text" else list(texts_under(value, wanted.columns, keys))
            if any(text.strip() for text in texts):
                empty = False
                yield texts
    there = f"; there is: {', '.join(sorted(keys)) or 'no key'}" if wanted.kind != "text" else ""
    missing = [column for column in wanted.columns if column not in keys]
    if missing and not empty and wanted.kind != "text":
        raise DataError(
            f"evaluation set {wanted.name!r}: {wanted.glob} has nothing under {', '.join(missing)}{there}",
            hint="correct `columns` of this set",
        )
    if empty:
        raise DataError(
            f"evaluation set {wanted.name!r}: {wanted.glob} holds no text"
            + (f" under {', '.join(wanted.columns)}{there}" if wanted.kind != "text" else ""),
            hint="correct `columns`, `kind` or `glob` of this set",
        )


def texts_under(value: Any, columns: Sequence[str], keys: set[str]) -> Iterator[str]:
    """All texts under these keys, first those that stand here, in the order of `columns`; `keys` takes all keys."""
    if isinstance(value, dict):
        keys.update(value)
        for column in columns:
            if column in value:
                yield from _texts(value[column])
        for key, inner in value.items():
            if key not in columns:
                yield from texts_under(inner, columns, keys)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_under(inner, columns, keys)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _values(wanted: EvaluationSet, path: StoragePath) -> Iterator[dict[str, Any]]:
    try:
        for row in read_rows(RowFile(path, max_bytes=_MAX_BYTES), wanted.kind):
            yield row.value
    except DataError as error:
        raise DataError(f"evaluation set {wanted.name!r}: {error.message}", hint=error.hint) from error
