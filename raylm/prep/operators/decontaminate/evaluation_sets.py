"""Evaluation sets as they are found: comes in a set's settings, leaves its records, each with its texts in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from raylm.config.decontaminate import EvaluationSet
from raylm.errors import DataError
from raylm.rows import opened
from raylm.storage import Connection, StoragePath, find


def records(wanted: EvaluationSet, connection: Connection) -> Iterator[list[str]]:
    """The texts of each line, row, list item or file of the set; a DataError where there is none."""
    files = find(wanted.glob, connection)
    if not files:
        raise DataError(
            f"evaluation set {wanted.name!r}: no file matches {wanted.glob}", hint="correct its `glob` in the job"
        )
    empty = True
    keys: set[str] = set()
    for place, _ in files:
        for value in _values(wanted, place):
            texts = [value] if wanted.kind == "text" else list(texts_under(value, wanted.columns, keys))
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


def _values(wanted: EvaluationSet, place: StoragePath) -> Iterator[Any]:
    if wanted.kind == "parquet":
        yield from _rows(wanted, place)
        return
    with opened(place) as stream:
        if wanted.kind == "json":
            value = _parsed(wanted, stream.read(), place.url)
            yield from value if isinstance(value, list) else [value]
            return
        for number, line in enumerate(stream, 1):
            where = f"{place.url}, line {number}"
            if wanted.kind == "text":
                yield _decoded(wanted, line, where)
            elif line.strip():
                yield _parsed(wanted, line, where)


def _rows(wanted: EvaluationSet, place: StoragePath) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with place.open_read() as stream:
        try:
            for batch in pq.ParquetFile(stream).iter_batches(1024, use_threads=False):
                yield from batch.to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(
                f"evaluation set {wanted.name!r}: {place.url} cannot be read as Parquet: {error}",
                hint="set its `kind`, or fetch the file again",
            ) from error


def _parsed(wanted: EvaluationSet, content: bytes, where: str) -> Any:
    try:
        return json.loads(_decoded(wanted, content, where))
    except (ValueError, RecursionError) as error:
        hint = "set its `kind` (jsonl: one value a line, json: one a file), or correct this place"
        raise DataError(f"evaluation set {wanted.name!r}: {where} is not JSON: {error}", hint=hint) from error


def _decoded(wanted: EvaluationSet, content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"evaluation set {wanted.name!r}: {where} is not UTF-8: {error}", hint="write the file again as UTF-8"
        ) from error
